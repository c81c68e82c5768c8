"""TACoS (Regneri et al., 2013): one moment per sentence, in long cooking videos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrmodel.data.datasets.base import (
    ConvertedSplit,
    PublishedDataset,
    PublishedFile,
    ReadOptions,
    read_moments,
)
from mrmodel.errors import DataError


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
        return _read_frames(path) if path.suffix == ".json" else read_moments(path, self.clip_len_s)


def _read_frames(path: Path) -> ConvertedSplit:
    table = ConvertedSplit()
    for name, video in _videos(path).items():
        vid = name.removesuffix(".avi")
        try:
            fps, duration = float(video["fps"]), video["num_frames"] / float(video["fps"])
            pairs = list(zip(video["timestamps"], video["sentences"], strict=True))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            rule = f"expected fps, num_frames, and as many timestamps as sentences: {error!r}"
            table.rejected.append(DataError(rule, file=path, qid=vid))
            continue
        for row in _rows(vid, duration, fps, pairs):
            start, end = row["relevant_windows"][0]
            if start < end:
                table.rows.append(row)
            else:
                rule = f"frames give the window {[start, end]}, which holds nothing of the video"
                table.rejected.append(DataError(rule, file=path, qid=row["qid"]))
    return table


def _rows(
    vid: str, duration: float, fps: float, pairs: list[tuple[list[float], str]]
) -> Iterator[dict[str, Any]]:
    for number, ((first, last), sentence) in enumerate(pairs):
        window = [max(first / fps, 0.0), min(last / fps, duration)]
        yield {
            "qid": f"{vid}_{number}",
            "query": sentence.strip(),
            "vid": vid,
            "duration": duration,
            "relevant_windows": [window],
        }


def _videos(path: Path) -> dict[str, Any]:
    try:
        videos = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from None
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", file=path) from None
    if not isinstance(videos, dict):
        raise DataError("expected one JSON object, video name -> annotations", file=path)
    return videos
