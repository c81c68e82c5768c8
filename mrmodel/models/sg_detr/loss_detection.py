"""Losses of decoder queries: all layers at once (docs/models/sg_detr.md, section 6).

A group is judged against the true window of each of its slots, be it by matching or because the
slot was made from that window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.set_matching import location_costs, match_layers
from mrmodel.losses.span import smooth_l1
from mrmodel.losses.windows import PaddedWindows, own_windows
from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sg_detr.output import Heads
from mrmodel.models.sg_detr.settings import MatchSettings
from mrmodel.spans import aligned_iou_and_giou, cxw_to_xx


@torch.no_grad()
def match_heads(heads: Heads, windows: PaddedWindows, weights: MatchSettings) -> Tensor:
    """Cheapest one-to-one matching of every layer and sample.

    The cost is span L1(centre, width) - giou gIoU - label p - iou IoU (published code).

    Args:
        heads: K layers of Q queries.
        windows: the truth; a sample may have none, or more than Q.
        weights: of the four terms.

    Returns:
        (K, B, Q) int64, index of the own window within the sample, -1 for background.
    """
    return match_layers(matching_cost(heads, windows, weights), windows)


def matching_cost(heads: Heads, windows: PaddedWindows, weights: MatchSettings) -> Tensor:
    """(K, B, Q, W): what it costs each query to answer for each window of its sample."""
    distance, apart = location_costs(heads.spans_cxw, windows)
    probability = heads.logits.float().sigmoid()
    gain = weights.label * probability + weights.iou * heads.iou_logits.float().sigmoid()
    return weights.span * distance + weights.giou * (apart - 1.0) - gain.unsqueeze(-1)


def matched_losses(
    heads: Heads, window: Tensor, windows: PaddedWindows, background_weight: float
) -> dict[str, Tensor]:
    """Losses of matched queries.

    ``label``: cross entropy, unmatched queries times `background_weight`, mean over all queries.
    Means over matched queries: ``span``: smooth L1 (beta 1) of centre and width; ``giou``:
    1 - gIoU; ``iou``: cross entropy with the IoU of the own window.

    Args:
        heads: K layers of Q queries.
        window: (K, B, Q), see `match_heads`.
        windows: the truth.
        background_weight: see above.

    Returns:
        (K,) each; 0 where nothing is matched.
    """
    positive = (window >= 0).float()
    count = positive.sum((1, 2)).clamp(min=1.0)
    true = own_windows(window, windows)
    iou, giou = aligned_iou_and_giou(cxw_to_xx(heads.spans_cxw), cxw_to_xx(true))
    entropy = F.binary_cross_entropy_with_logits(heads.logits, positive, reduction="none")
    weight = background_weight + (1.0 - background_weight) * positive
    error = smooth_l1(heads.spans_cxw, true, 1.0).mean(-1)
    quality = F.binary_cross_entropy_with_logits(heads.iou_logits, iou.detach(), reduction="none")
    return {
        "label": (weight * entropy).mean((1, 2)),
        "span": (positive * error).sum((1, 2)) / count,
        "giou": (positive * (1.0 - giou)).sum((1, 2)) / count,
        "iou": (positive * quality).sum((1, 2)) / count,
    }


def auxiliary_losses(
    heads: Heads, queries: LabelledQueries, windows: PaddedWindows
) -> dict[str, Tensor]:
    """Losses of auxiliary queries, which know their window.

    ``label``: cross entropy, mean over all slots. Means over positive slots: ``span``: absolute
    error of start and end; ``giou``: 1 - gIoU.

    Returns:
        (K,) each, of K layers; 0 without positive slots.
    """
    positive, used = queries.positive.float(), queries.used.float()
    count = positive.sum().clamp(min=1.0)
    true = cxw_to_xx(own_windows(queries.window[None], windows))
    found = cxw_to_xx(heads.spans_cxw)
    _, giou = aligned_iou_and_giou(found, true.expand_as(found))
    entropy = F.binary_cross_entropy_with_logits(
        heads.logits, positive.expand_as(heads.logits), reduction="none"
    )
    return {
        "label": (used * entropy).sum((1, 2)) / used.sum().clamp(min=1.0),
        "span": (positive * (found - true).abs().mean(-1)).sum((1, 2)) / count,
        "giou": (positive * (1.0 - giou)).sum((1, 2)) / count,
    }
