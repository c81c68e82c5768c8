"""Losses that align the moment with its sentence (eq. 14; docs/models/sg_detr.md, section 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.span import focal_loss
from mrmodel.models.layers.functional import full_precision
from mrmodel.models.sg_detr.output import Alignment

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
