"""One-to-one matching of all decoder layers at once, for queries and windows in padded tables."""

from __future__ import annotations

import logging
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrmodel.losses.windows import PaddedWindows
from mrmodel.spans import aligned_giou, cxw_to_xx

BROKEN_COST = 1e6

log = logging.getLogger(__name__)


def location_costs(spans_cxw: Tensor, windows: PaddedWindows) -> tuple[Tensor, Tensor]:
    """L1 distance and 1 - gIoU of each query and each window of its sample.

    Args:
        spans_cxw: (K, B, Q, 2).
        windows: the truth.

    Returns:
        (K, B, Q, Gmax) each.
    """
    predicted = spans_cxw.float()[..., None, :]
    true = windows.spans_cxw[:, None]
    distance = (predicted - true).abs().sum(-1)
    return distance, 1.0 - aligned_giou(cxw_to_xx(predicted), cxw_to_xx(true))


@torch.no_grad()
def match_layers(cost: Tensor, windows: PaddedWindows) -> Tensor:
    """The cheapest one-to-one matching of every layer and sample.

    Args:
        cost: (K, B, Q, Gmax); entries of windows that do not exist are not read.
        windows: which exist; a sample may have none, or more than Q.

    Returns:
        (K, B, Q) int64, index of the window within its sample that a query answers for; -1 where
        it answers for none.
    """
    # Padding is marked in the costs themselves, so that one transfer tells everything.
    cost = cost.nan_to_num(BROKEN_COST, BROKEN_COST, BROKEN_COST).clamp(max=BROKEN_COST)
    cost = cost.masked_fill(~windows.valid[:, None], torch.inf)
    return torch.from_numpy(_assign(cost.cpu().numpy())).to(cost.device, non_blocking=True)


def _assign(cost: NDArray[np.float32]) -> NDArray[np.int64]:
    """(K, B, Q, Gmax) costs, infinite at padding -> (K, B, Q) window of each query, or -1."""
    from scipy.optimize import linear_sum_assignment  # Half a second; only training matches.

    broken = int((cost == np.float32(BROKEN_COST)).sum())
    if broken:
        log.warning("matching: %d of %d costs are not finite, or too large", broken, cost.size)
    table = np.ascontiguousarray(cost.swapaxes(-1, -2), dtype=np.float64)
    counts = np.isfinite(table[0, :, :, 0]).sum(-1)
    match = np.full(cost.shape[:3], -1, dtype=np.int64)
    for layer, sample in product(range(len(match)), np.flatnonzero(counts)):
        window, query = linear_sum_assignment(table[layer, sample, : counts[sample]])
        match[layer, sample, query] = window
    return match
