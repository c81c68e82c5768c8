"""VideoLights' Algorithm 1: a caption for every ten seconds of a video becomes a training row.

Each interval gets the caption of one frame; the scores of its clips against that caption are the
ratings. Every video is a function of its file and the settings alone, so an interrupted run goes on
with the videos that are left, to the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrmodel.config.intervid import CaptionSettings
from mrmodel.config.video_captions import VideoCaptionSettings
from mrmodel.encoders.base import Frames
from mrmodel.errors import VideoError
from mrmodel.files import digest_of, read_json, write_json
from mrmodel.pretraining.intervid.caption_rules import (
    PASSED,
    RULES,
    CaptionColumns,
    first_failed,
    normalise_caption,
)
from mrmodel.pretraining.video_captions.captioners import Captioner, Scorer
from mrmodel.pretraining.video_captions.rows import (
    Captioned,
    Interval,
    clean_caption,
    joined,
    rows_of,
    split_video,
)
from mrmodel.progress import Reporter, track
from mrmodel.types import clips_before
from mrmodel.video.decoder import VideoLimits
from mrmodel.video.frames import FrameSource

# Clips that a network sees at once.
_GROUP = 32


@dataclass(frozen=True, slots=True)
class Video:
    """A video to caption: its id in annotations, its file, and its length as a player counts it."""

    vid: str
    path: Path
    duration_s: float


@dataclass(frozen=True, slots=True)
class Networks:
    """What captions and scores, and the rules that captions must pass."""

    captioner: Captioner
    scorer: Scorer
    rules: CaptionSettings


@dataclass(frozen=True, slots=True)
class CaptioningJob:
    """How videos are captioned.

    Attributes:
        settings: the section `video_captions`.
        clip_len_s: seconds of a clip.
        limits: videos beyond them are left out.
        work: folder of what is done; the caller removes it.
    """

    settings: VideoCaptionSettings
    clip_len_s: float
    limits: VideoLimits
    work: Path


def caption_videos(
    videos: Iterable[Video], job: CaptioningJob, build: Callable[[], Networks], reporter: Reporter
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The training rows of all videos, in order of their ids, and counts by outcome.

    Args:
        videos: to caption.
        job: see `CaptioningJob`.
        build: makes the networks; called only if a video is left to caption.
        reporter: notified of every video.

    Returns:
        Rows, and how many intervals were read, dropped by which rule, and became rows.
    """
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    networks: Networks | None = None
    ordered = sorted(videos, key=lambda video: video.vid)
    for video in track(ordered, reporter, "caption", len(ordered)):
        done = job.work / f"{digest_of(video.vid)[:32]}.json"
        if not done.exists():
            networks = networks or build()
            write_json(done, _caption(video, job, networks))
        found = read_json(done)
        rows += found["rows"]
        counts.update(found["counts"])
    return rows, counts


def _caption(video: Video, job: CaptioningJob, networks: Networks) -> dict[str, Any]:
    """The rows of one video, and counts."""
    source = FrameSource(video.path, job.limits)
    try:
        clips = list(source.clips(job.clip_len_s, networks.scorer.sampling))
    except VideoError as error:
        return {"rows": [], "counts": {f"video {error.code}": 1}}
    frames = np.stack([clip.frames for clip in clips])
    late_s, settings = source.report.start_s, job.settings
    intervals = split_video(
        video.duration_s - late_s,
        len(clips),
        job.clip_len_s,
        settings.interval_s,
        settings.min_last_s,
    )
    counts = Counter(intervals=len(intervals))
    chosen = [_chosen_clip(one, frames, job, networks) for one in intervals]
    seen = [not clips[clip].interpolated for clip in chosen]
    counts["frame not decoded"] = seen.count(False)
    intervals = [one for one, is_seen in zip(intervals, seen, strict=True) if is_seen]
    chosen = [clip for clip, is_seen in zip(chosen, seen, strict=True) if is_seen]
    texts = _in_groups(lambda part: networks.captioner.caption(frames[part]), chosen)
    captions = [normalise_caption(clean_caption(text)) for text in texts]
    failed = _failed_rules(captions, networks.rules)
    counts.update(f"caption {rule}" for rule in failed if rule)
    kept = [
        _scored(one, caption, frames, networks)
        for one, caption, rule in zip(intervals, captions, failed, strict=True)
        if not rule
    ]
    if not kept:
        return {"rows": [], "counts": counts}
    vectors = networks.scorer.text_vectors([one.caption for one in kept])
    groups = joined(kept, vectors, settings.merge_similar)
    counts["joined"] = len(kept) - len(groups)
    late_clips = clips_before(late_s, job.clip_len_s)
    rows = rows_of(video.vid, video.duration_s, groups, settings.scale, late_s, late_clips)
    counts["rows"] = len(rows)
    return {"rows": rows, "counts": counts}


def _chosen_clip(one: Interval, frames: Frames, job: CaptioningJob, networks: Networks) -> int:
    """The clip whose frame is captioned."""
    if job.settings.frame == "middle":
        return one.middle_clip
    if job.settings.frame == "first":
        return one.first_clip
    vectors = networks.scorer.image_vectors(frames[one.first_clip : one.end_clip])
    return one.first_clip + int((vectors @ vectors.sum(axis=0)).argmax())


def _scored(one: Interval, caption: str, frames: Frames, networks: Networks) -> Captioned:
    """The interval with its caption and the scores of its clips."""
    clips = list(range(one.first_clip, one.end_clip))
    scores = _in_groups(
        lambda part: networks.scorer.score(frames[part], [caption] * len(part)).tolist(), clips
    )
    return Captioned(caption, [one], dict(zip(clips, scores, strict=True)))


def _in_groups(work: Callable[[list[int]], list[Any]], clips: list[int]) -> list[Any]:
    groups = (clips[first : first + _GROUP] for first in range(0, len(clips), _GROUP))
    return [value for group in groups for value in work(group)]


def passing(captions: list[str], rules: CaptionSettings) -> list[str]:
    """The distinct captions that pass the rules about one caption, in order."""
    distinct = list(dict.fromkeys(map(normalise_caption, captions)))
    failed = _failed_rules(distinct, rules)
    return [text for text, rule in zip(distinct, failed, strict=True) if not rule]


def _failed_rules(captions: list[str], rules: CaptionSettings) -> list[str]:
    """The first rule about its words that each caption fails; empty if none."""
    words_only = rules.rules.model_copy(update={"score": False, "interval": False})
    nothing = np.zeros(len(captions))
    times = np.zeros(len(captions), dtype=np.int64)
    columns = CaptionColumns(captions, times, times, nothing, nothing)
    failed = first_failed(columns, rules.model_copy(update={"rules": words_only}), 0)
    return [
        "empty" if not text else "" if index == PASSED else RULES[index]
        for text, index in zip(captions, failed.tolist(), strict=True)
    ]
