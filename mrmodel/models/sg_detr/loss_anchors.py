"""Losses of the anchor head (docs/models/sg_detr.md, section 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.span import focal_loss, smooth_l1
from mrmodel.models.sg_detr.anchors import AnchorTargets
from mrmodel.models.sg_detr.output import AnchorOutput
from mrmodel.spans import aligned_giou, cxw_to_xx


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
