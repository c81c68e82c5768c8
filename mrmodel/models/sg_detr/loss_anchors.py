"""Losses of the anchor head (sg_detr.md, section 5.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.span import focal_loss, smooth_l1
from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.sg_detr.output import AnchorHeads, AnchorTargets
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.spans import aligned_giou, cxw_to_xx


class AnchorLoss:
    """What the anchors say, against the window that each one was given.

    * ``atss/cls``: focal loss over valid anchors / number of positives, or with `atss.cls`
      ``bce`` their mean cross entropy, background times `loss.cls.eos`.
    * ``atss/l1``, ``atss/giou``: smooth absolute error (mean of centre and width) and 1 - gIoU of
      positives, averaged with the centerness targets as weights.
    * ``atss/centerness``: mean cross entropy of positives.

    Divisors are at least 1; without positives the last three are 0.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        self.kind, self.background_weight = settings.atss.cls, settings.loss.cls.eos
        self.beta = settings.loss.smooth_l1_beta

    def __call__(
        self, heads: AnchorHeads, targets: AnchorTargets, windows: PaddedWindows
    ) -> dict[str, Tensor]:
        """Unweighted float32 scalars by name."""
        positive = targets.window >= 0
        weight = targets.centerness.float()
        entropy = F.binary_cross_entropy_with_logits(
            heads.centerness.float(), weight, reduction="none"
        )
        true = _own_windows(heads, targets, windows)
        absolute = smooth_l1(heads.spans_cxw, true, self.beta).mean(2)
        giou = aligned_giou(cxw_to_xx(heads.spans_cxw), cxw_to_xx(true))
        total = weight.sum().clamp(min=1.0)
        return {
            "atss/cls": self._class_loss(heads, positive),
            "atss/l1": (absolute * weight).sum() / total,
            "atss/giou": ((1.0 - giou) * weight).sum() / total,
            "atss/centerness": (entropy * positive).sum() / positive.sum().clamp(min=1),
        }

    def _class_loss(self, heads: AnchorHeads, positive: Tensor) -> Tensor:
        logits, target = heads.logits.float(), positive.float()
        if self.kind == "focal":
            focal = focal_loss(logits, target)
            return (focal * heads.valid).sum() / positive.sum().clamp(min=1)
        weight = torch.where(positive, 1.0, self.background_weight) * heads.valid
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (entropy * weight).sum() / heads.valid.sum().clamp(min=1)


def _own_windows(heads: AnchorHeads, targets: AnchorTargets, windows: PaddedWindows) -> Tensor:
    """(B, A, 2) the window of each anchor; anything finite at background."""
    if not windows.spans_cxw.shape[1]:
        return heads.anchors_cxw
    index = targets.window.clamp(min=0).unsqueeze(2).expand(-1, -1, 2)
    return windows.spans_cxw.gather(1, index)
