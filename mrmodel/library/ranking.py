"""How the videos of a library are ranked against each other.

Scores of windows and clips are made for one video at a time, and are not comparable between videos
as they are; ranks are. `benchmarks/library.py` compares the ways on the validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mrmodel.types import QueryResult

Scores = NDArray[np.float64]
# Results of the same query for some videos, and the similarity of the best clip of each, if clips
# and sentences have a common space.
Ranking = Callable[[Sequence[QueryResult], Scores | None], Scores]

# Of reciprocal rank fusion (Cormack et al. 2009).
_FUSION_K = 60
# Clips of a video that its highest scores are averaged over.
_BEST_CLIPS = 3


def by_window(results: Sequence[QueryResult], similarities: Scores | None) -> Scores:
    """By the score of the best window."""
    return np.array([max((one.score for one in r.moments), default=-np.inf) for r in results])


def by_clip(results: Sequence[QueryResult], similarities: Scores | None) -> Scores:
    """By the score of the best clip."""
    return np.array([max(result.clip_scores) for result in results])


def by_similarity(results: Sequence[QueryResult], similarities: Scores | None) -> Scores:
    """By similarity, without the model."""
    return by_clip(results, None) if similarities is None else similarities


def by_fusion(results: Sequence[QueryResult], similarities: Scores | None) -> Scores:
    """By three reciprocal ranks: of the best clips, of the clips in the best window, of similarity.

    A mean over clips depends less on one of them than the maximum, and ranks better on the
    validation split; so does leaving out the scores of windows.
    """
    best_clips = np.array([np.mean(np.sort(r.clip_scores)[-_BEST_CLIPS:]) for r in results])
    in_window = np.array([_mean_in_best_window(result) for result in results])
    lists = [best_clips, in_window, by_similarity(results, similarities)]
    return fused([ranks(scores) for scores in lists])


def _mean_in_best_window(result: QueryResult) -> float:
    """Mean score of the clips in the first window, or of all clips if there is none."""
    scores = np.asarray(result.clip_scores)
    if not result.moments:
        return float(scores.mean())
    best = result.moments[0]
    first = min(int(best.start_s / result.clip_len_s + 0.5), len(scores) - 1)
    end = max(int(best.end_s / result.clip_len_s + 0.5), first + 1)
    return float(scores[first:end].mean())


RANKINGS: dict[str, Ranking] = {
    "window": by_window,
    "clip": by_clip,
    "similarity": by_similarity,
    "fusion": by_fusion,
}
RANKING = "fusion"


def ranks(scores: Scores) -> Scores:
    """The rank of each score, from 1 for the highest; equal ones keep their order."""
    found = np.empty(len(scores))
    found[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return found


def fused(lists: Sequence[Scores]) -> Scores:
    """Reciprocal rank fusion with equal weights.

    Args:
        lists: ranks of the same N items by several criteria, from 1; infinite: not in the list.

    Returns:
        (N,) scores, the best item has the highest.
    """
    total: Scores = np.sum([1.0 / (_FUSION_K + one) for one in lists], axis=0)
    return total
