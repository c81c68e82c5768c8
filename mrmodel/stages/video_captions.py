"""Stage ``video_captions``: pre-training rows from captioned frames (VideoLights, Algorithm 1)."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from mrmodel.components import ENCODERS
from mrmodel.config.schema import Config
from mrmodel.config.video_captions import VideoCaptionSettings
from mrmodel.devices import pick_device
from mrmodel.encoders.base import TextEncoder, VideoEncoder, are_aligned, build_encoder
from mrmodel.encoders.weights_lock import require_pinned
from mrmodel.errors import ConfigError, DataError
from mrmodel.features.keys import base_video
from mrmodel.files import digest_of, write_json, write_jsonl
from mrmodel.lines import json_lines
from mrmodel.pretraining.video_captions.captioners import PhraseBank
from mrmodel.pretraining.video_captions.generate import (
    CaptioningJob,
    Networks,
    Video,
    caption_videos,
    passing,
)
from mrmodel.progress import Reporter
from mrmodel.stages.extract import videos_in
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_stage
from mrmodel.stages.scorer import read_rows_if_any
from mrmodel.tracking.run import current_run
from mrmodel.video.decoder import VideoLimits

log = logging.getLogger(__name__)


def video_captions(config: Config, reporter: Reporter) -> None:
    """Write ``data/video_captions``: train.jsonl, val.jsonl (empty) and report.json.

    Without a captioner the set is empty.

    Raises:
        ConfigError: the captioner cannot run with these features.
        DataError: no caption became a row.
    """
    paths, settings = Paths(config), config.video_captions
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {"captioner": None}
    if settings is not None and settings.captioner is not None:
        phrases = _phrases(config, paths) if settings.captioner == "phrases" else []
        work = paths.state / "resume" / f"video_captions-{config.corpus.name}"
        rows, report = caption_rows(config, phrases, work, reporter)
        log.info("captions: %s", report["counts"])
        current_run().log({f"captions/{key}": n for key, n in report["counts"].items()}, 0)
    write_jsonl(paths.video_captions / "train.jsonl", rows)
    write_jsonl(paths.video_captions / "val.jsonl", [])
    write_json(paths.video_captions / "report.json", report)


def caption_rows(
    config: Config, phrases: list[str], work: Path, reporter: Reporter
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the training videos, and the report about them.

    Args:
        config: all settings; those of `video_captions` name a captioner.
        phrases: what captioner ``phrases`` chooses from; others do not use it.
        work: folder of what an interrupted run has done, empty at the end.
        reporter: notified of every video.

    Raises:
        ConfigError: there are no settings, or the captioner cannot run with these features.
        DataError: no caption became a row.
    """
    paths, settings = Paths(config), config.video_captions
    if settings is None:
        rule = "is needed to caption frames: `mrmodel preset show sample` prints the section"
        raise ConfigError("video_captions", None, rule)
    videos, counts = _videos(config, settings, paths)
    weights = _weights(config, settings)
    clip_len_s = config.features.clip_len_s
    inputs = {"settings": settings.model_dump(), "weights": weights, "clip_len_s": clip_len_s}
    key = digest_of([inputs, config.intervid.captions.model_dump(), phrases])
    limits = VideoLimits(max_duration_s=config.features.max_duration_s)
    job = CaptioningJob(settings, clip_len_s, limits, work / key[:16])
    networks = partial(_networks, config, settings, phrases)
    rows, found = caption_videos(videos, job, networks, reporter)
    counts |= found
    if not rows:
        outcomes = ", ".join(f"{name} {count}" for name, count in counts.items()) or "no video"
        raise DataError(f"no caption became a training row ({outcomes})", file=paths.videos)
    shutil.rmtree(job.work, ignore_errors=True)
    return rows, {"captioner": settings.captioner, **inputs, "counts": dict(counts)}


def _videos(
    config: Config, settings: VideoCaptionSettings, paths: Paths
) -> tuple[list[Video], Counter[str]]:
    """The videos to caption, those of the training split, and how many are left out and why."""
    clip_len_s = config.features.clip_len_s
    splits = {
        name: {row.vid: row.duration for row in read_rows_if_any(paths.split(name), clip_len_s)}
        for name in ("train", "val", "test")
    }
    held_out = splits["val"] | splits["test"]
    wanted = splits["train"]
    counts: Counter[str] = Counter()
    if settings.include_eval_videos:
        wanted = held_out | wanted
        counts["evaluation videos captioned"] = len(held_out)
    else:
        bases = {base_video(vid) for vid in held_out} | held_out.keys()
        leaking = [vid for vid in wanted if vid in bases or base_video(vid) in bases]
        counts["evaluation videos left out"] = len(leaking)
        wanted = {vid: length for vid, length in wanted.items() if vid not in leaking}
    files = videos_in(paths)
    counts["videos without a file"] = sum(vid not in files for vid in wanted)
    return [
        Video(vid, files[vid], length) for vid, length in wanted.items() if vid in files
    ], counts


def _weights(config: Config, settings: VideoCaptionSettings) -> dict[str, Any]:
    """What decides the networks' output besides the settings, by stream or folder."""
    if settings.captioner != "phrases":
        from mrmodel.pretraining.video_captions.blip import weight_digests

        return {folder: weight_digests(Path(folder)) for folder in settings.weights}
    streams = (config.features.video_streams[0], config.features.text_streams[0])
    if not all(name in ENCODERS for name in streams) or not are_aligned(*streams):
        rule = (
            "captioner 'phrases' compares clips with sentences: the first video stream and the "
            "first text stream must be of one encoder with one space"
        )
        raise ConfigError("video_captions.captioner", ", ".join(streams), rule)
    for name in streams:
        require_pinned(Paths(config).weight_pins, name)
    return {name: build_encoder(name).fingerprint() for name in streams}


def _phrases(config: Config, paths: Paths) -> list[str]:
    """What captioner ``phrases`` chooses from: the corpus's captions that pass the rules."""
    rows = (row for _, _, row in json_lines(paths.captions, nan=True))
    texts = [row.get("Caption") for row in rows if not isinstance(row, DataError)]
    captions = [text for text in texts if isinstance(text, str)]
    return passing(captions, config.intervid.captions)


def _networks(config: Config, settings: VideoCaptionSettings, phrases: list[str]) -> Networks:
    rules, network = config.intervid.captions, settings.captioner
    if network is None or network == "phrases":
        clips: VideoEncoder = ENCODERS.get(config.features.video_streams[0])()
        sentences: TextEncoder = ENCODERS.get(config.features.text_streams[0])()
        bank = PhraseBank(clips, sentences, phrases)
        return Networks(bank, bank, rules)
    from mrmodel.pretraining.video_captions.blip import BlipCaptioner, BlipScorer

    device = pick_device(config.train.device)
    captioner, scorer = (Path(folder) for folder in settings.weights)
    return Networks(
        BlipCaptioner(network, captioner, device),
        BlipScorer(network, scorer, settings.score, device),
        rules,
    )


if __name__ == "__main__":
    run_stage(video_captions)
