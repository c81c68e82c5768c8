"""Losses of single numbers, before any mean: what the detection losses are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Binary cross entropy times how wrong the answer is (Lin et al. 2017).

    Args:
        logits: (...) of the foreground.
        targets: (...) 0 or 1.
        alpha: weight of the foreground; the background has 1 - alpha.
        gamma: exponent of the probability that was given to the wrong answer, at least 1.

    Returns:
        (...) float32.
    """
    logits, targets = logits.float(), targets.float()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    wrong = probability + targets - 2.0 * probability * targets
    weight = (1.0 - alpha) + (2.0 * alpha - 1.0) * targets
    return weight * wrong.pow(gamma) * entropy


def smooth_l1(predicted: Tensor, true: Tensor, beta: float) -> Tensor:
    """Absolute error, quadratic below `beta`: (...) -> (...) float32; `beta` 0 is the plain one."""
    return F.smooth_l1_loss(predicted.float(), true.float(), reduction="none", beta=beta)
