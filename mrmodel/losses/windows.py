"""True windows as padded tensors, for batched losses, and their matching with queries."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mrmodel.spans import aligned_giou, aligned_iou, cxw_to_xx
from mrmodel.types import Targets


@dataclass(frozen=True, slots=True)
class PaddedWindows:
    """True windows of a batch, one row per sample.

    Attributes:
        spans_cxw: (B, Gmax, 2) float32, fractions of T; (0.5, 0.5) at padding. Gmax may be 0.
        valid: (B, Gmax) bool; a sample's windows come first.
    """

    spans_cxw: Tensor
    valid: Tensor


def pad_windows(targets: Targets) -> PaddedWindows:
    """The windows of `targets`, sample by sample in their order."""
    device = targets.spans_cxw.device
    counts = torch.tensor(targets.span_counts, dtype=torch.int64)
    longest = max(targets.span_counts, default=0)
    valid = (torch.arange(longest) < counts[:, None]).to(device, non_blocking=True)
    spans = targets.spans_cxw.new_full((len(counts), longest, 2), 0.5)
    # Not `spans[valid] = ...`, which synchronises with the device.
    spans.masked_scatter_(valid.unsqueeze(2), targets.spans_cxw)
    return PaddedWindows(spans, valid)


def own_windows(window: Tensor, windows: PaddedWindows) -> Tensor:
    """Windows (K, B, S, 2) at indices (K, B, S) within the sample; (0.5, 0.5) for index -1."""
    # An extra last row, read by index -1, also if no sample has windows.
    table = F.pad(windows.spans_cxw, (0, 0, 0, 1), value=0.5)
    return table[torch.arange(len(table), device=table.device)[:, None], window]


def best_iou(spans_cxw: Tensor, windows: PaddedWindows) -> Tensor:
    """(K, B, S, 2) -> (K, B, S) IoU with the best true window of the sample; 0 if there is none.

    No gradient.
    """
    true = cxw_to_xx(windows.spans_cxw)[:, None]
    iou = aligned_iou(cxw_to_xx(spans_cxw.detach())[..., None, :], true)
    return F.pad(iou.masked_fill(~windows.valid[:, None], 0.0), (0, 1)).amax(-1)


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
