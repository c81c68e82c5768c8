"""Highlight metrics: average precision and Hit@1 of clip scores against ratings.

The data sets use three definitions of average precision: QVHighlights (mean of the interpolated
precision), TVSum (trapezoid over the five best clips) and YouTube Highlights (trapezoid over all
clips). Shapes: ``n`` queries, ``L`` clips (padded), ``R`` raters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrmodel.evaluate.ragged import Floats, Integers, Ragged

RATING_THRESHOLDS = {"Fair": 2.0, "Good": 3.0, "VeryGood": 4.0}

# Array elements per block: fits the cache and limits memory for long videos.
_BLOCK = 60_000


@dataclass(frozen=True, slots=True)
class HighlightArrays:
    """Clip scores and ratings of n queries, as ragged lists.

    Attributes:
        scores: predicted clip scores, possibly more or fewer than there are clips.
        clip_ids: annotated clips.
        ratings: (total, R) ratings of those clips; all other clips are rated 0.
        n_clips: (n,) number of clips of each video.
    """

    scores: Ragged
    clip_ids: Ragged
    ratings: Ragged
    n_clips: Integers


@dataclass(frozen=True, slots=True)
class HighlightScores:
    """Per query: `ap` (n, 3 thresholds, R) in [0, 1] and `hit` (n, 3) 0 or 1."""

    ap: Floats
    hit: Floats


def rate_highlights(arrays: HighlightArrays, *, missing_clips_last: bool) -> HighlightScores:
    """Average precision per threshold and rater, and Hit@1.

    Too long lists are truncated, too short ones padded: with zeros as published, which outrank
    negative scores, or ranked last with `missing_clips_last`. The best clip is taken from the list
    as given (published) or after truncation (`missing_clips_last`); beyond the last clip it is a
    miss. A query without scores has 0 everywhere.
    """
    n, raters = len(arrays.n_clips), arrays.ratings.values.shape[1]
    result = HighlightScores(np.zeros((n, 3, raters)), np.zeros((n, 3)))
    longest_first = np.argsort(-arrays.n_clips, kind="stable")
    start = 0
    while start < n:
        row_entries = int(arrays.n_clips[longest_first[start]]) * len(RATING_THRESHOLDS) * raters
        rows = longest_first[start : start + max(1, _BLOCK // row_entries)]
        result.ap[rows], result.hit[rows] = _rate_block(arrays, rows, missing_clips_last)
        start += len(rows)
    return result


def interpolated_ap(
    scores: Floats, positive: NDArray[np.bool_], valid: NDArray[np.bool_]
) -> Floats:
    """Mean interpolated precision at the recall steps: (n, L), (n, C, L), (n, L) -> (n, C).

    Clips with equal scores form one step. The value is 0 without positive clips, 1 if all are.
    """
    order = np.argsort(np.where(valid, -scores, np.inf), axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    inside = np.arange(scores.shape[1]) < valid.sum(axis=1)[:, None]
    step_end = inside.copy()
    step_end[:, :-1] &= (ranked[:, :-1] != ranked[:, 1:]) | ~inside[:, 1:]
    step_end = step_end[:, None, :]
    labels = np.take_along_axis(positive & valid[:, None, :], order[:, None, :], axis=2)
    # Only ends of steps count: elsewhere both are 0, which does not affect a running maximum.
    true_count = np.cumsum(labels, axis=2, dtype=np.int32) * step_end
    precision = true_count / np.arange(1, scores.shape[1] + 1)
    precision = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    reached = np.maximum.accumulate(true_count, axis=2)
    rises = np.diff(reached, axis=2, prepend=np.int32(0)) > 0
    # As published: a list of the precision at the steps, from the last one to the first.
    steps = Ragged(precision[..., ::-1][rises[..., ::-1]], rises.sum(axis=2).ravel())
    ap: Floats = (steps.sums() / np.maximum(steps.counts, 1)).reshape(rises.shape[:2])
    return ap


def trapezoid_ap(ranked_labels: NDArray[np.bool_]) -> Floats:
    """Area under the precision-recall polygon that starts at (0, 1): (C, k) labels -> (C,).

    Recall is relative to the positives among the k labels; 0 if there are none.
    """
    if not ranked_labels.shape[1]:
        return np.zeros(len(ranked_labels))
    true_count = np.cumsum(ranked_labels, axis=1, dtype=np.float64)
    precision = true_count / np.arange(1, ranked_labels.shape[1] + 1)
    recall = true_count / np.maximum(true_count[:, -1:], 1.0)
    before = np.concatenate([np.ones((len(precision), 1)), precision[:, :-1]], axis=1)
    gain = np.diff(recall, axis=1, prepend=0.0) * (before + precision) / 2.0
    # As published, one after the other.
    area: Floats = np.cumsum(gain, axis=1)[:, -1]
    return area


def tvsum_ap(scores: Floats, ratings: Floats) -> Floats:
    """Top-5 average precision of one video for each rater: (L',) and (L, R) -> (R,).

    A clip is positive for a rater if its rating is above the rater's lower median over all clips.
    Scores beyond the last clip are ignored; clips without a score are not ranked.
    """
    middle = (len(ratings) - 1) // 2
    positive = ratings > np.partition(ratings, middle, axis=0)[middle]
    order = np.argsort(-scores[: len(ratings)], kind="stable")[:5]
    return trapezoid_ap(positive[order].T)


def youtube_ap(scores: Floats, labels: Floats) -> float | None:
    """Average precision of one video over all its clips; None if it has no positive clip."""
    order = np.argsort(-scores[: len(labels)], kind="stable")
    positive = labels > 0.0
    if not positive.any():
        return None
    return float(trapezoid_ap(positive[order][None])[0])


def _rate_block(
    arrays: HighlightArrays, rows: Integers, missing_clips_last: bool
) -> tuple[Floats, Floats]:
    n_clips = arrays.n_clips[rows]
    width = int(n_clips.max())
    clip_ids, ratings = arrays.clip_ids.lists(rows), arrays.ratings.lists(rows)
    given = arrays.scores.lists(rows)
    table = np.zeros((len(rows), ratings.values.shape[1], width))
    table[clip_ids.owners(), :, clip_ids.values.astype(np.int64)] = ratings.values
    levels = np.array(list(RATING_THRESHOLDS.values()))
    positive = (table[:, None] >= levels[:, None, None]).reshape(len(rows), -1, width)
    valid = np.arange(width) < n_clips[:, None]
    cut = given.head(width)
    scores = cut.padded(-np.inf if missing_clips_last else 0.0, width)
    ap = interpolated_ap(scores, positive, valid).reshape(len(rows), len(levels), -1)
    if missing_clips_last:
        best = np.where(valid, scores, -np.inf).argmax(axis=1)
    else:
        best = given.padded(-np.inf).argmax(axis=1)
    any_rater = np.logical_or.reduce(positive.reshape(len(rows), len(levels), -1, width), axis=2)
    hit = any_rater[np.arange(len(rows)), :, np.minimum(best, width - 1)]
    answered = given.counts > 0
    hit &= (answered & (best < n_clips))[:, None]
    return ap * answered[:, None, None], hit.astype(np.float64)
