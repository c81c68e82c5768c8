"""Elementwise losses that several criteria share; float32 inside, no reduction."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Binary focal loss (Lin et al. 2017): `logits` and 0/1 `targets` of one shape -> that shape.

    alpha_t (1 - p_t)^gamma times the cross entropy, where p_t is the probability of the truth.
    """
    logits, targets = logits.float(), targets.float()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    missed = probability + targets - 2.0 * probability * targets
    balance = 1.0 - alpha + (2.0 * alpha - 1.0) * targets
    return balance * missed**gamma * entropy


def smooth_l1(predicted: Tensor, true: Tensor, beta: float) -> Tensor:
    """Absolute error, quadratic below `beta`; `beta` 0 is the absolute error itself."""
    return F.smooth_l1_loss(predicted.float(), true.float(), reduction="none", beta=beta)
