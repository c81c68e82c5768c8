"""TACoS (Regneri et al., 2013): one moment per sentence, in long cooking videos."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from mrmodel.data.annotations import parse_annotation
from mrmodel.data.datasets.base import (
    ConvertedSplit,
    PublishedDataset,
    PublishedFile,
    ReadOptions,
    read_moments,
)
from mrmodel.errors import DataError
from mrmodel.files import read_text


class Tacos(PublishedDataset):
    """JSON lines with seconds, or one JSON object of videos with frame numbers (2D-TAN's)."""

    name = "tacos"
    title = "TACoS"
    clip_len_s = 2.0
    max_clips = None
    max_tokens = 100
    saliency = "1 on clips that lie in the moment by more than half, 0 elsewhere"
    files = (
        PublishedFile(
            "train", ("tacos_train_release.jsonl", "train.jsonl", "train.json"), (9790, 10146)
        ),
        PublishedFile("val", ("tacos_val_release.jsonl", "val.jsonl", "val.json"), (4436, 4589)),
        PublishedFile(
            "test", ("tacos_test_release.jsonl", "test.jsonl", "test.json"), (4001, 4083)
        ),
    )

    def read(self, path: Path, options: ReadOptions) -> ConvertedSplit:
        """Read either format, recognised by the file suffix."""
        if path.suffix == ".json":
            return _read_frames(path, self.clip_len_s)
        return read_moments(path, self.clip_len_s)


def _read_frames(path: Path, clip_len_s: float) -> ConvertedSplit:
    videos, repeated = _videos(path)
    rule = "the video is there twice; its first rows are left out"
    table = ConvertedSplit(rejected=[DataError(rule).at(path, None, name) for name in repeated])
    first: dict[str, str] = {}
    for name, video in videos.items():
        vid = name.removesuffix(".avi")
        try:
            if first.setdefault(vid, name) != name:
                raise DataError(f"the video is there already, as {first[vid]!r}")
            fps, duration = float(video["fps"]), video["num_frames"] / float(video["fps"])
            pairs = list(zip(video["timestamps"], video["sentences"], strict=True))
        except DataError as error:
            table.rejected.append(error.at(path, None, name))
            continue
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            rule = f"expected fps, num_frames, and as many timestamps as sentences: {error!r}"
            table.rejected.append(DataError(rule).at(path, None, vid))
            continue
        for number, (frames, sentence) in enumerate(pairs):
            qid = f"{vid}_{number}"
            try:
                row = {
                    "qid": qid,
                    "query": sentence.strip() if isinstance(sentence, str) else sentence,
                    "vid": vid,
                    "duration": duration,
                    "relevant_windows": [_window(frames, fps, duration)],
                }
                parse_annotation(row, clip_len_s)
                table.rows.append(row)
            except DataError as error:
                table.rejected.append(error.at(path, None, qid))
    return table


def _window(frames: Any, fps: float, duration: float) -> list[float]:
    """Seconds of the first and the last frame of a moment, cut to the video."""
    try:
        first, last = frames
        window = [max(first / fps, 0.0), min(last / fps, duration)]
    except (TypeError, ValueError, ArithmeticError):
        rule = "expected its first and last frame"
        raise DataError(f"timestamps = {str(frames)[:60]}: {rule}") from None
    if not window[0] < window[1]:
        raise DataError(f"frames give the window {window}, which holds nothing of the video")
    return window


def _videos(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Annotations of each video by name, and the names that occur more than once."""
    repeated: list[str] = []

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            repeated.extend(name for name in found if counts[name] > 1)
        return found

    try:
        videos = json.loads(read_text(path), object_pairs_hook=as_dict)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", file=path) from None
    if not isinstance(videos, dict):
        raise DataError("expected one JSON object, video name -> annotations", file=path)
    return videos, [name for name in repeated if name in videos]
