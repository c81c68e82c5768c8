"""Losses of the predicted span quality (SA-DETR eqs 8, 9; BAM-DETR)."""

from __future__ import annotations

from torch import Tensor

from mrmodel.losses.windows import PaddedWindows, best_iou
from mrmodel.models.sa_detr.settings import QualitySettings
from mrmodel.models.sa_detr.span_refiner import RefinedQueries

# With `bins`, IoUs above the first, between the two, and up to the second have equal weight.
BIN_EDGES = (0.7, 0.3)


def quality_loss(
    found: RefinedQueries,
    windows: PaddedWindows,
    matched: Tensor,
    used: Tensor,
    settings: QualitySettings,
) -> Tensor:
    """|q - IoU with the best true window|, weighted; the span gets no gradient.

    Args:
        found: K layers of S queries.
        windows: the true windows; the target of a sample without any is 0.
        matched: (K or 1, B, S) bool, queries with weight `w_matched`.
        used: (B, S) bool, the queries with a loss.
        settings: ``matched``: the weighted mean over used queries (or their sum, mean over
            samples); ``bins``: the mean over three ranges of IoU of the mean within each, 0 for an
            empty range.

    Returns:
        (K,).
    """
    target = best_iou(found.spans_cxw, windows)
    error = (found.quality_logits.sigmoid() - target).abs()
    if settings.weighting == "bins":
        high, low = BIN_EDGES
        bins = (target > high, (target <= high) & (target > low), target <= low)
        means = [_mean(error, (part & used).float()) for part in bins]
        return (means[0] + means[1] + means[2]) / len(bins)
    weight = 1.0 + (settings.w_matched - 1.0) * matched.float()
    total = (error * weight * used).sum((1, 2))
    return total / (used.sum().clamp(min=1) if settings.norm == "mean" else max(len(used), 1))


def quality_margin(quality: Tensor, used: Tensor, margin: float) -> Tensor:
    """relu(q_far - q_near + margin) summed over the pairs of copies of one window in one group.

    Args:
        quality: (K, B, groups, 2, Gmax), the near copies first.
        used: of the same shape without K, bool.
        margin: required lead of the near copy.

    Returns:
        (K,).
    """
    near, far = quality.unbind(3)
    return ((far - near + margin).relu() * used[:, :, 0]).sum((1, 2, 3))


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """(K, B, S) -> (K,) weighted mean of each layer, 0 if all weights are 0."""
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1.0)
