"""One-to-one matching of all decoder layers at once (sg_detr.md, section 4.7)."""

from __future__ import annotations

import logging
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from mrmodel.losses.span import focal_loss
from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.sg_detr.output import Heads
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.spans import aligned_giou, cxw_to_xx

BROKEN_COST = 1e6
UNUSED_COST = 1e9  # beyond any number of broken costs in one sample

log = logging.getLogger(__name__)


class LayerwiseMatcher:
    """Least total of class cost, L1 distance of centre and width, and 1 - gIoU.

    The weights are those of the section ``match``, as is the exponent of the class cost ``sdet``.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        self.match, self.alpha = settings.match, settings.match.alpha

    @torch.no_grad()
    def __call__(
        self, heads: Heads, windows: PaddedWindows, class_cost: str, used: Tensor | None = None
    ) -> Tensor:
        """Match every layer and sample on its own.

        Args:
            heads: K layers of Q queries.
            windows: the truth; a sample may have none, or more than Q.
            class_cost: ``sdet``, ``additive``, ``prob`` or ``focal``.
            used: as in `match_layers`.

        Returns:
            As `match_layers` returns it.

        Raises:
            ValueError: the class cost reads an IoU head that is not there, or is unknown.
        """
        return match_layers(self.cost(heads, windows, class_cost), windows, used)

    def cost(self, heads: Heads, windows: PaddedWindows, class_cost: str) -> Tensor:
        """(K, B, Q, Gmax): what it costs each query to answer for each window of its sample."""
        distance, apart = location_costs(heads.spans_cxw, windows)
        of_class = self.match.ce * self._class_cost(heads, class_cost)
        return of_class[..., None] + self.match.l1 * distance + self.match.giou * apart

    def _class_cost(self, heads: Heads, kind: str) -> Tensor:
        """(K, B, Q)."""
        logits = heads.logits.float()
        if kind == "prob":
            return -logits.sigmoid()
        if kind == "focal":
            ones = torch.ones_like(logits)
            return focal_loss(logits, ones) - focal_loss(logits, 0.0 * ones)
        if kind not in ("additive", "sdet") or heads.iou_logits is None:
            raise ValueError(f"class cost {kind!r} is unknown, or needs an IoU head")
        iou_logits = heads.iou_logits.float()
        if kind == "additive":
            return -logits.sigmoid() - self.match.mu * iou_logits.sigmoid()
        of_iou = (1.0 - self.alpha) * logsigmoid(iou_logits)
        return -(self.alpha * logsigmoid(logits) + of_iou).exp()


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
def match_layers(cost: Tensor, windows: PaddedWindows, used: Tensor | None = None) -> Tensor:
    """The cheapest one-to-one matching of every layer and sample.

    Args:
        cost: (K, B, Q, Gmax); entries of windows that do not exist are not read.
        windows: which exist; a sample may have none, or more than Q.
        used: (B, Q) bool, queries that may be matched; None = all.

    Returns:
        (K, B, Q) int64, index of the window within its sample that a query answers for; -1 where
        it answers for none.
    """
    # Padding is marked in the costs themselves, so that one transfer tells everything.
    cost = cost.nan_to_num(BROKEN_COST, BROKEN_COST, BROKEN_COST).clamp(max=BROKEN_COST)
    if used is not None:
        cost = cost.masked_fill(~used[:, :, None], UNUSED_COST)
    cost = cost.masked_fill(~windows.valid[:, None], torch.inf)
    match = torch.from_numpy(_assign(cost.cpu().numpy())).to(cost.device, non_blocking=True)
    return match if used is None else match.masked_fill(~used, -1)


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
