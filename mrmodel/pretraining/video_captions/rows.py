"""From captioned intervals of one video to its pre-training rows; no networks, no files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MAX_GRADE = 4
RATERS = 3
_SAME = 1e-6
_QID_BITS = 53  # exact in every JSON reader
_OF_MEDIUM = re.compile(r"^(?:an?|the) (?:photo(?:graph)?|picture|image) of ", re.IGNORECASE)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A part of a video in seconds from its first picture, and its clips, `end_clip` excluded.

    Neighbours share the clip that lies across their border.
    """

    start_s: float
    end_s: float
    first_clip: int
    end_clip: int

    @property
    def middle_clip(self) -> int:
        """The clip in the middle."""
        return (self.first_clip + self.end_clip - 1) // 2


@dataclass(slots=True)
class Captioned:
    """A caption, its intervals in order of time, and the score of each of their clips."""

    caption: str
    intervals: list[Interval]
    scores: dict[int, float]


def split_video(
    duration_s: float, n_clips: int, clip_len_s: float, interval_s: float, min_last_s: float
) -> list[Interval]:
    """Split a video into intervals that tile it; a short last one joins the one before it.

    Features often are a clip shorter than the video: clips beyond `n_clips` are left out, and
    intervals without any.
    """
    count = max(1, math.ceil(duration_s / interval_s - _SAME))
    bounds = [place * interval_s for place in range(count)] + [duration_s]
    if count > 1 and bounds[-1] - bounds[-2] < min_last_s:
        del bounds[-2]
    found = []
    for start_s, end_s in pairwise(bounds):
        first = math.floor(start_s / clip_len_s + _SAME)
        end = min(math.ceil(end_s / clip_len_s - _SAME), n_clips)
        if first < end:
            found.append(Interval(start_s, end_s, first, end))
    return found


def clean_caption(text: str) -> str:
    """Without the words of a captioner for the picture itself."""
    return _OF_MEDIUM.sub("", text.strip())


def joined(
    captioned: Sequence[Captioned], vectors: NDArray[np.float32], merge_similar: float | None
) -> list[Captioned]:
    """Join intervals that would be false negatives of one another.

    Those side by side whose captions have at least the cosine `merge_similar` get the caption of
    the first; then those with equal captions, wherever they are.

    Args:
        captioned: K intervals in order of time.
        vectors: (K, d) of unit length, of their captions.
        merge_similar: None: neighbours are joined by equal captions only.
    """
    captions = [one.caption for one in captioned]
    for place in range(1, len(captions) if merge_similar is not None else 0):
        beside = captioned[place].intervals[0].start_s <= captioned[place - 1].intervals[-1].end_s
        if beside and float(vectors[place] @ vectors[place - 1]) >= (merge_similar or 0.0):
            captions[place] = captions[place - 1]
    groups: dict[str, Captioned] = {}
    for caption, one in zip(captions, captioned, strict=True):
        group = groups.setdefault(caption, Captioned(caption, [], {}))
        group.intervals.extend(one.intervals)
        for clip, score in one.scores.items():
            group.scores[clip] = max(score, group.scores.get(clip, score))
    return list(groups.values())


def grades(scores: Floats, low: float, high: float) -> NDArray[np.int64]:
    """Grades 1..4 of scores (n,) by their place between the lowest and highest of the video.

    Where all are equal, 2.
    """
    if high - low < _SAME:
        return np.full(len(scores), 2, dtype=np.int64)
    placed = np.rint(MAX_GRADE * (scores - low) / (high - low)).astype(np.int64)
    return np.maximum(placed, 1)


def script_scores(scores: Floats) -> Floats:
    """The published script's ratings of probabilities: 2.72 up to 0.4, 12.18 at 1."""
    return np.maximum(np.exp(np.maximum(2.5 * scores, 1.0)), 2.0)


def rows_of(
    vid: str,
    duration_s: float,
    captioned: Sequence[Captioned],
    scale: Literal["grades", "script"],
    late_s: float,
    late_clips: int,
) -> list[dict[str, Any]]:
    """The training rows of a video, one for each caption.

    Args:
        vid: of the video.
        duration_s: as a player counts it.
        captioned: captions with their intervals.
        scale: of the ratings.
        late_s: seconds from the start of the file to the first picture.
        late_clips: the same in clips.
    """
    everything = [score for one in captioned for score in one.scores.values()]
    rows = []
    for one in captioned:
        clips = sorted(one.scores)
        scores = np.array([one.scores[clip] for clip in clips], dtype=np.float64)
        if scale == "grades":
            graded = grades(scores, min(everything), max(everything)).tolist()
            ratings: list[list[float]] = [[grade] * RATERS for grade in graded]
        else:
            ratings = [[round(value, 6)] for value in script_scores(scores).tolist()]
        windows = _windows(one.intervals, late_s)
        rows.append(
            {
                "qid": _qid(vid, windows),
                "query": one.caption,
                "vid": vid,
                "duration": duration_s,
                "relevant_windows": windows,
                "relevant_clip_ids": [clip + late_clips for clip in clips],
                "saliency_scores": ratings,
            }
        )
    return rows


def _windows(intervals: Sequence[Interval], late_s: float) -> list[list[float]]:
    """Intervals as windows; those side by side are one."""
    windows: list[list[float]] = []
    for one in intervals:
        start, end = round(one.start_s + late_s, 3), round(one.end_s + late_s, 3)
        if windows and start <= windows[-1][1]:
            windows[-1][1] = end
        else:
            windows.append([start, end])
    return windows


def _qid(vid: str, windows: Sequence[Sequence[float]]) -> int:
    text = "_".join([vid, *(f"{bound:.1f}" for window in windows for bound in window)])
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _QID_BITS)
