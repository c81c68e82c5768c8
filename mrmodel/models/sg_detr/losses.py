"""Losses of decoder queries, anchor head and alignment (docs/models/sg_detr.md, section 6).

Decoder queries: all layers at once. A group is judged against the true window of each of its slots,
be it by matching or because the slot was made from that window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.span import focal_loss, smooth_l1
from mrmodel.losses.windows import PaddedWindows, location_costs, match_layers, own_windows
from mrmodel.models.layers.functional import full_precision
from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sg_detr.anchors import AnchorTargets
from mrmodel.models.sg_detr.output import Alignment, AnchorOutput, Heads
from mrmodel.models.sg_detr.settings import MatchSettings
from mrmodel.spans import aligned_giou, aligned_iou_and_giou, cxw_to_xx


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


def anchor_losses(
    found: AnchorOutput, targets: AnchorTargets, windows_xx: Tensor
) -> dict[str, Tensor]:
    """What the anchors say, against the window that each one was given.

    * ``label``: focal loss over all anchors that exist / number of positives.
    * ``span``, ``giou``: smooth L1 (beta 1) of start and end, summed, in anchor units, and 1 - gIoU
      of positives, averaged with the centerness targets as weights.
    * ``centerness``: cross entropy of positives / number of positives.

    Args:
        found: of the anchor head.
        targets: of `assign`.
        windows_xx: (B, W, 2) true windows in anchor units, W at least 1.

    Returns:
        Float32 scalars; without positives all but ``label`` are 0.
    """
    positive = targets.window >= 0
    count = positive.sum().clamp(min=1)
    weight = targets.centerness
    total = weight.sum()
    total = torch.where(total > 0.0, total, 1.0)
    index = targets.window.clamp(min=0).unsqueeze(2).expand(-1, -1, 2)
    true = windows_xx.gather(1, index)
    spans = cxw_to_xx(found.spans_cxw)
    error = smooth_l1(spans, true, 1.0).sum(2)
    ordered = torch.stack((spans[..., 0], spans.amax(-1)), dim=-1)
    apart = 1.0 - aligned_giou(ordered, true)
    entropy = F.binary_cross_entropy_with_logits(found.centerness, weight, reduction="none")
    focal = focal_loss(found.logits, positive.float())
    return {
        "label": (focal * found.exists).sum() / count,
        "span": (error * weight).sum() / total,
        "giou": (apart * weight).sum() / total,
        "centerness": (entropy * positive).sum() / count,
    }


ALPHA, GAMMA = 0.5, 2.0


def alignment_losses(
    found: Alignment, labels: Tensor, mask: Tensor, legacy_divisor: bool
) -> dict[str, Tensor]:
    """``alignment``: a moment finds its sentence; ``moment``: and its clips.

    ``alignment`` reads the cosines of all moments and sentences of the batch as logits: a focal
    loss against the identity, mean over moments and sum over sentences. ``moment`` is the cross
    entropy of moment . clip / sqrt(d) with label > 0, mean over valid clips.

    Args:
        found: tokens and clips.
        labels: (B, L) ratings.
        mask: (B, L) bool.
        legacy_divisor: as published, batch padding counts in the mean of ``moment``.
    """
    with full_precision(mask.device):
        moment, clips = found.moment.float(), found.clips.float()
        sentence = F.normalize(found.sentence.float(), dim=-1)
        cosine = F.normalize(moment, dim=-1) @ sentence.T
        logits = (clips @ moment.unsqueeze(2)).squeeze(2) * moment.shape[1] ** -0.5
    own = torch.eye(len(cosine), device=cosine.device)
    entropy = F.binary_cross_entropy_with_logits(logits, (labels > 0).float(), reduction="none")
    count = mask.numel() if legacy_divisor else mask.sum()
    return {
        "alignment": focal_loss(cosine, own, ALPHA, GAMMA).sum() / len(cosine),
        "moment": (entropy * mask).sum() / count,
    }
