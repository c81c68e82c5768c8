"""Losses of the clip scores, as in the published code of Moment-DETR and QD-DETR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.criterion import LossInputs
from mrmodel.types import Targets

LEVELS = torch.arange(1.0, 12.0)  # rating sums used as thresholds
LEVEL_DIVISOR = 12.0  # as published, although there are eleven levels
TEMPERATURE = 0.5
MASKED_SCORE = -1000.0


class SaliencyMarginLoss:
    """``saliency``: hinge loss with `margin` on pairs of a positive and a negative clip."""

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def __call__(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Named scalars; 0 if there are no pairs."""
        return {"saliency": margin_loss(inputs.output.saliency, inputs.targets, self.margin)}


class QueryDependentSaliencyLoss:
    """``saliency`` of QD-DETR: the sum of the margin, rank-contrastive and negative-pair terms."""

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def __call__(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Named scalars; the output's `extras` must hold ``negative_saliency``."""
        output, targets, batch = inputs.output, inputs.targets, inputs.batch
        negative = output.extras["negative_saliency"]
        total = margin_loss(output.saliency, targets, self.margin)
        total = total + rank_contrastive_loss(
            output.saliency, negative, targets.saliency_labels, batch.video_mask
        )
        return {"saliency": total + negative_pair_loss(negative, batch.video_mask)}


def margin_loss(saliency: Tensor, targets: Targets, margin: float) -> Tensor:
    """2 / (B P) times the sum over pairs of max(0, margin + s_neg - s_pos); 0 without pairs."""
    positive = saliency.gather(1, targets.saliency_pos)
    negative = saliency.gather(1, targets.saliency_neg)
    return 2.0 * (margin + negative - positive).relu().sum() / max(positive.numel(), 1)


def negative_pair_loss(negative: Tensor, mask: Tensor) -> Tensor:
    """Batch mean of the sum over valid clips of -log(1 - sigmoid(s)), written as softplus(s).

    The published form becomes infinite for s above about 17; softplus does not.
    """
    return (F.softplus(negative) * mask).sum(1).mean()


def rank_contrastive_loss(
    saliency: Tensor, negative: Tensor, labels: Tensor, mask: Tensor
) -> Tensor:
    """Clips rated at least r must outscore the other clips and all clips of the negative pair.

    For each level r = 1..11 with a positive clip in the batch: the batch mean of the negative mean
    log-probability of the positives, with a softmax over the 2L scores of a sample.

    Args:
        saliency: (B, L) scores of the real pairs.
        negative: (B, L) scores of the negative pairs.
        labels: (B, L) rating sums, 0 on padding.
        mask: (B, L) bool.

    Returns:
        The sum over the levels, divided by 12; a scalar.
    """
    valid = torch.cat((mask, mask), dim=1)
    scores = torch.cat((saliency, negative), dim=1).masked_fill(~valid, MASKED_SCORE) / TEMPERATURE
    logits = scores - scores.amax(1, keepdim=True)
    log_probability = (logits - (logits.exp().sum(1, keepdim=True) + 1e-6).log()) * valid
    # Negative pairs have label 0, so only the real half has positives: (levels, B, L).
    positive = labels >= LEVELS.to(labels.device, non_blocking=True)[:, None, None]
    count = positive.sum(-1)
    real = log_probability[:, : labels.shape[1]]
    mean = (positive * real).sum(-1) / (count + 1e-6)
    # The mean of a sample without positives at a level is already 0.
    return -mean.mean(1).sum() / LEVEL_DIVISOR
