"""Moment-retrieval metrics: average precision over IoU thresholds and recall at k, vectorised.

All queries of a file are scored at once; nothing loops over queries or thresholds. Shapes: ``n``
queries, ``K`` ranked predictions and ``G`` ground-truth windows (both padded), ``T`` thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrmodel.evaluate import ragged
from mrmodel.evaluate.protocols import percent
from mrmodel.evaluate.ragged import Floats, Mode, Ragged
from mrmodel.evaluate.rows import Pairing

Flags = NDArray[np.bool_]

AP_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALL_THRESHOLDS = tuple(round(0.3 + 0.05 * step, 2) for step in range(14))


@dataclass(frozen=True, slots=True)
class MomentArrays:
    """Windows of n queries in seconds; shorter lists are padded with what is never a hit.

    Attributes:
        ranked: (n, K, 2) the windows used for average precision, best first.
        listed: (n, k, 2) the windows used for recall at 1..k, in their order.
        truth: (n, G, 2) ground truth.
        truth_valid: (n, G) bool.
        undefined_iou: what average precision takes for 0/0, the IoU of windows whose lengths sum to
            0: one that ends before it starts and a true one just as long, or two of length 0. The
            published evaluator takes it for above all thresholds.
    """

    ranked: Floats
    listed: Floats
    truth: Floats
    truth_valid: Flags
    undefined_iou: float = 0.0

    def within(self, shortest: float, longest: float) -> tuple[NDArray[np.int64], MomentArrays]:
        """Keep ground truth with a length in (shortest, longest], and the queries that have any.

        Predictions are not filtered, so a correct one outside the range is a false positive.
        """
        length = self.truth[..., 1] - self.truth[..., 0]
        valid = self.truth_valid & (length > shortest) & (length <= longest)
        rows = np.flatnonzero(valid.any(axis=1))
        part = MomentArrays(
            self.ranked[rows],
            self.listed[rows],
            self.truth[rows],
            valid[rows],
            self.undefined_iou,
        )
        return rows, part


def by_score(windows: Ragged) -> Ragged:
    """Each list of (start, end, score) by descending score; the sort is stable."""
    order = np.lexsort((-windows.values[:, 2], windows.owners()))
    ranked: Floats = windows.values[order]
    return Ragged(ranked, windows.counts)


def pairwise_iou(first: Floats, second: Floats) -> Floats:
    """IoU of every window with every other: (n, K, 2) and (n, G, 2) -> (n, K, G).

    Empty windows, and windows that end before they start, have IoU 0 with everything.
    """
    start, end, other_start, other_end = _pairs(first, second)
    overlap = np.maximum(0.0, np.minimum(end, other_end) - np.maximum(start, other_start))
    union = (end - start) + (other_end - other_start) - overlap
    iou: Floats = np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0.0)
    return iou


def best_iou(listed: Floats, truth: Floats, truth_valid: Flags) -> Floats:
    """Each window's IoU with the best ground truth: (n, k, 2) -> (n, k).

    As published, the union is computed as the hull: the same for overlapping windows, but rounded
    differently than in `pairwise_iou`, which matters for hits exactly on a threshold.
    """
    start, end, other_start, other_end = _pairs(listed, truth)
    overlap = np.maximum(0.0, np.minimum(end, other_end) - np.maximum(start, other_start))
    hull = np.maximum(end, other_end) - np.minimum(start, other_start)
    iou = np.divide(overlap, hull, out=np.zeros_like(overlap), where=overlap > 0.0)
    best: Floats = np.where(truth_valid[:, None, :], iou, 0.0).max(axis=2)
    return best


def average_precision(arrays: MomentArrays, thresholds: tuple[float, ...]) -> Floats:
    """Interpolated (VOC 2011) average precision of each query and IoU threshold: (n, T).

    In rank order, each prediction takes the unmatched ground-truth window with the highest IoU
    (the later one on ties), and is a true positive if that IoU reaches the threshold. Without
    predictions or without ground truth the value is 0.
    """
    iou = pairwise_iou(arrays.ranked, arrays.truth)
    length, true_length = np.diff(arrays.ranked)[..., 0], np.diff(arrays.truth)[..., 0]
    iou[length[:, :, None] + true_length[:, None, :] == 0.0] = arrays.undefined_iou
    iou = np.where(arrays.truth_valid[:, None, :], iou, -1.0)
    found = _match(iou, np.array(thresholds))
    true_count = np.cumsum(found, axis=2, dtype=np.float64)
    precision = true_count / np.arange(1, found.shape[2] + 1)
    precision = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    recall = true_count / np.maximum(arrays.truth_valid.sum(axis=1), 1)[:, None, None]
    gain = np.diff(recall, axis=2, prepend=0.0) * precision
    # As published: the gains of the hits, and a last one of 0 if some truth is not found.
    missed = recall[..., -1:] < 1.0
    terms = np.concatenate([found, missed], axis=2)
    gains = np.concatenate([gain, np.zeros_like(missed, dtype=np.float64)], axis=2)
    total: Floats = Ragged(gains[terms], terms.sum(axis=2).ravel()).sums().reshape(terms.shape[:2])
    return total


def _pairs(first: Floats, second: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    return (
        first[:, :, None, 0],
        first[:, :, None, 1],
        second[:, None, :, 0],
        second[:, None, :, 1],
    )


def _match(iou: Floats, thresholds: Floats) -> Flags:
    """(n, K, G) IoU, -1 where there is no ground truth -> (n, T, K) true positives."""
    n, ranks, n_truth = iou.shape
    # Reversed, so that argmax (first of equals) returns the later ground truth.
    iou = iou[:, :, ::-1]
    taken = np.zeros((n, len(thresholds), n_truth), dtype=bool)
    found = np.zeros((n, len(thresholds), ranks), dtype=bool)
    for rank in range(ranks):
        # Most predictions miss everything; process only those that may hit.
        rows = np.flatnonzero(iou[:, rank].max(axis=1) >= thresholds.min())
        occupied = taken[rows]
        free_iou = np.where(occupied, -1.0, iou[rows, rank][:, None, :])
        choice = free_iou.argmax(axis=2)[..., None]
        hit = np.take_along_axis(free_iou, choice, axis=2) >= thresholds[:, None]
        taken[rows] = occupied | (hit & (np.arange(n_truth) == choice))
        found[rows, :, rank] = hit[..., 0]
    return found


# The published evaluators use at most this many windows per query.
MAX_RANKED = 10


def moment_arrays(pairing: Pairing, mode: Mode) -> MomentArrays:
    """Predictions and ground truth as padded arrays; predictions ranked and cut as `mode` defines.

    Official: average precision uses the first `MAX_RANKED` windows of each prediction in file
    order, merging those that repeat a qid; recall uses the last of these, as listed.
    """
    truth = ragged.annotated_windows(pairing.annotations)
    windows = ragged.predicted_windows(pairing.predictions, mode)
    if mode == "official":
        listed = windows.lists(pairing.latest)
        n = len(pairing.annotations)
        ranked = by_score(windows.head(MAX_RANKED).merge(pairing.owners, n))
    else:
        longest = np.repeat(ragged.durations(pairing.annotations)[pairing.owners], windows.counts)
        windows.values[:, :2] = np.clip(windows.values[:, :2], 0.0, longest[:, None])
        listed = ranked = by_score(windows.lists(pairing.latest)).head(MAX_RANKED)
    listed = listed.head(5)
    return MomentArrays(
        # NaN has no length, so padding is not like a window of length 0.
        ranked.padded(np.nan)[..., :2],
        listed.padded()[..., :2],
        truth.padded(),
        truth.valid(),
        np.inf if mode == "official" else 0.0,
    )


def precision_block(ap: Floats) -> dict[str, float | None]:
    """Mean of (n, T) per threshold and over all thresholds, in percent."""
    means = ap.mean(axis=0) if len(ap) else np.full(ap.shape[1], np.nan)
    block = {str(level): percent(mean) for level, mean in zip(AP_THRESHOLDS, means, strict=True)}
    return block | {"average": percent(means.mean())}


def threshold_block(hits: NDArray[np.bool_], levels: tuple[float, ...]) -> dict[str, float | None]:
    """Hit rate of (n, T) per threshold, in percent."""
    means = hits.mean(axis=0) if len(hits) else np.full(len(levels), np.nan)
    return {str(level): percent(mean) for level, mean in zip(levels, means, strict=True)}
