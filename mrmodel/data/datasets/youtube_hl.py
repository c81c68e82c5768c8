"""YouTube Highlights (Sun et al., 2014): binary highlight labels of clips, 6 domains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mrmodel.data.annotations import checked_duration
from mrmodel.data.datasets.base import (
    ConvertedSplit,
    LabelGrid,
    PublishedDataset,
    PublishedFile,
    ReadOptions,
)
from mrmodel.data.datasets.labelled import labels_of, read_labelled
from mrmodel.errors import DataError


class YouTubeHighlights(PublishedDataset):
    """Published labels are for clips of about 100 frames, one starting every 50 frames.

    The published systems nevertheless pair label i with feature row i, which covers one second.
    With the grid ``seconds`` a second has label 1 if more than half of it lies in clips of label
    1; with ``published`` labels are unchanged, and feature rows after the last label count as 0.
    """

    name = "youtube_hl"
    title = "YouTube Highlights"
    clip_len_s = 1.0
    max_clips = 1000
    max_tokens = 100
    domains = ("dog", "gymnastics", "parkour", "skating", "skiing", "surfing")
    saliency = "1 on highlights, 0 elsewhere"
    held_out = 0.2
    files = (
        PublishedFile(
            "train", ("youtube_highlight_train_release.jsonl", "youtube_train.jsonl"), (233,)
        ),
        PublishedFile(
            "val", ("youtube_highlight_val_release.jsonl", "youtube_valid.jsonl"), (152,)
        ),
    )

    def read(self, path: Path, options: ReadOptions) -> ConvertedSplit:
        """Read JSON lines with `label`, `domain`, `clip` and `fps`."""
        ratings = partial(self._ratings, options.label_grid)
        return read_labelled(path, self.clip_len_s, self.domains, ratings)

    def _ratings(
        self, grid: LabelGrid, record: Mapping[str, Any]
    ) -> tuple[float, list[list[float]]]:
        duration = checked_duration(record.get("duration"))
        labels = labels_of(record)
        if not all(clip in ([0], [1]) for clip in labels):
            raise DataError("'label' must hold one 0 or 1 a clip")
        if grid == "published":
            return duration, labels
        highlights = _highlights(record, labels)
        seconds = range(math.ceil(duration / self.clip_len_s))
        return duration, [[int(self._is_highlight(t, highlights))] for t in seconds]

    def _is_highlight(self, second: int, highlights: list[tuple[float, float]]) -> bool:
        start, end = second * self.clip_len_s, (second + 1) * self.clip_len_s
        covered, reached = 0.0, start
        for first, last in highlights:
            covered += max(0.0, min(last, end) - max(first, reached))
            reached = max(reached, last)
        return covered > self.clip_len_s / 2


def _highlights(record: Mapping[str, Any], labels: list[list[float]]) -> list[tuple[float, float]]:
    """Start and end in seconds of the clips with label 1, in order of their starts."""
    clips, fps = record.get("clip"), record.get("fps")
    if not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise DataError(
            f"fps = {fps!r}: expected frames a second; or convert with the grid published"
        )
    if not isinstance(clips, list) or len(clips) != len(labels):
        raise DataError(f"'clip' must hold the first and last frame of all {len(labels)} clips")
    try:
        spans = [(float(first) / fps, float(last) / fps) for first, last in clips]
    except (TypeError, ValueError, ArithmeticError):
        raise DataError("'clip' must hold pairs of frame numbers") from None
    return sorted(span for span, label in zip(spans, labels, strict=True) if label == [1])
