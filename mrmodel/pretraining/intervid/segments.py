"""Chooses the video segment around a caption's interval.

All times are whole milliseconds. Segments start on the clip grid of their video, so the features
of a video are extracted once and sliced.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mrmodel.config.intervid import SegmentSettings
from mrmodel.files import derive_seed

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Intervals:
    """Annotated intervals, (n,) each; `duration_ms` is that of the interval's video."""

    qid: Ints
    start_ms: Ints
    end_ms: Ints
    duration_ms: Ints


@dataclass(frozen=True, slots=True)
class Segments:
    """Chosen segments, (n,) each.

    Attributes:
        first_clip: index of its first clip in the video's clip grid.
        n_clips: its length.
        interval_start_ms, interval_end_ms: the interval relative to the segment, clipped to it.
        lost_ms: length of the interval outside of the segment.
    """

    first_clip: Ints
    n_clips: Ints
    interval_start_ms: Ints
    interval_end_ms: Ints
    lost_ms: Ints

    def take(self, chosen: NDArray[np.bool_]) -> Segments:
        """A subset of the segments."""
        return Segments(*(getattr(self, field.name)[chosen] for field in fields(self)))


def choose_segments(
    intervals: Intervals, settings: SegmentSettings, clip_ms: int, seed: int
) -> Segments:
    """Place a segment of at most `settings.length_s` around each interval.

    The video is first truncated to whole clips: with the exact duration, an interval in the
    remainder after the last clip would have no grid point and get a truncated segment.

    Args:
        intervals: n intervals.
        settings: length (a whole number of clips) and offset rule.
        clip_ms: length of a clip.
        seed: of the random offsets; each depends on (seed, qid) alone.
    """
    longest = round(settings.length_s * 1000) // clip_ms
    available = intervals.duration_ms // clip_ms
    end_ms = np.minimum(intervals.end_ms, available * clip_ms)
    lowest = np.maximum(0, -(-(end_ms - longest * clip_ms) // clip_ms))
    inside = intervals.start_ms // clip_ms
    highest = np.minimum(inside, np.maximum(0, available - longest))
    if settings.offset == "random":
        first = lowest + _draws(intervals.qid, highest - lowest + 1, seed)
    else:
        centre = (intervals.start_ms + end_ms) // 2
        ideal = (centre - longest * clip_ms // 2 + clip_ms // 2) // clip_ms
        first = np.clip(ideal, lowest, np.maximum(lowest, highest))
    # An interval of almost full length may leave no grid point: start at its clip, clip its end.
    first = np.where(highest < lowest, inside, first)
    n_clips = np.clip(available - first, 0, longest)
    start = np.clip(intervals.start_ms - first * clip_ms, 0, n_clips * clip_ms)
    end = np.clip(intervals.end_ms - first * clip_ms, start, n_clips * clip_ms)
    lost = (intervals.end_ms - intervals.start_ms) - (end - start)
    return Segments(first, n_clips, start, end, lost)


def _draws(qids: Ints, counts: Ints, seed: int) -> Ints:
    """One number in [0, count) per query; 0 where count is not positive."""
    seeds = [derive_seed(seed, "segment", qid) for qid in qids.tolist()]
    return np.array(seeds, dtype=np.int64) % np.maximum(counts, 1)
