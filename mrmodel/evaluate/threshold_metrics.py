"""Shared by the protocols that score windows: padded arrays and blocks of percentages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mrmodel.evaluate import moment_retrieval, ragged
from mrmodel.evaluate.protocols import percent
from mrmodel.evaluate.ragged import Floats, Mode
from mrmodel.evaluate.rows import Pairing

# The published evaluators use at most this many windows per query.
MAX_RANKED = 10


def moment_arrays(pairing: Pairing, mode: Mode) -> moment_retrieval.MomentArrays:
    """Predictions and ground truth as padded arrays; predictions ranked and cut as `mode` defines.

    Official: average precision uses the first `MAX_RANKED` windows of each prediction in file
    order, merging those that repeat a qid; recall uses the last of these, as listed.
    """
    truth = ragged.annotated_windows(pairing.annotations)
    windows = ragged.predicted_windows(pairing.predictions, mode)
    if mode == "official":
        listed = windows.lists(pairing.latest)
        n = len(pairing.annotations)
        ranked = moment_retrieval.by_score(windows.head(MAX_RANKED).merge(pairing.owners, n))
    else:
        longest = np.repeat(ragged.durations(pairing.annotations)[pairing.owners], windows.counts)
        windows.values[:, :2] = np.clip(windows.values[:, :2], 0.0, longest[:, None])
        listed = ranked = moment_retrieval.by_score(windows.lists(pairing.latest)).head(MAX_RANKED)
    listed = listed.head(5)
    return moment_retrieval.MomentArrays(
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
    block = {
        str(level): percent(mean)
        for level, mean in zip(moment_retrieval.AP_THRESHOLDS, means, strict=True)
    }
    return block | {"average": percent(means.mean())}


def threshold_block(hits: NDArray[np.bool_], levels: tuple[float, ...]) -> dict[str, float | None]:
    """Hit rate of (n, T) per threshold, in percent."""
    means = hits.mean(axis=0) if len(hits) else np.full(len(levels), np.nan)
    return {str(level): percent(mean) for level, mean in zip(levels, means, strict=True)}
