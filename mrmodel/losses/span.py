"""Losses of matched windows, and their element-wise terms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.criterion import LossInputs
from mrmodel.losses.matching import FOREGROUND, Matching, first_and_last_clip
from mrmodel.spans import aligned_giou, cxw_to_xx
from mrmodel.types import LayerOutput


class SpanLoss:
    """``span``: mean absolute error of centre and width. ``giou``: mean of 1 - gIoU.

    Both means run over the matched windows of a layer; 0 if there are none.
    """

    def __call__(
        self, layers: LayerOutput, matching: Matching, inputs: LossInputs
    ) -> dict[str, Tensor]:
        """Named losses (K,) of K decoder layers."""
        predicted = layers.spans_cxw[matching.queries].float()
        true = inputs.targets.spans_cxw[matching.window]
        pairs = max(true.shape[1], 1)
        giou = aligned_giou(cxw_to_xx(predicted), cxw_to_xx(true))
        return {
            "span": (predicted - true).abs().sum((1, 2)) / (2 * pairs),
            "giou": (1.0 - giou).sum(1) / pairs,
        }


class ClipIndexLoss:
    """``span``: cross entropy of the first and of the last clip; ``giou`` is 0 as published."""

    def __call__(
        self, layers: LayerOutput, matching: Matching, inputs: LossInputs
    ) -> dict[str, Tensor]:
        """Named losses (K,) of K decoder layers."""
        logits = layers.extras["start_end_logits"][matching.queries].float()
        clips = first_and_last_clip(inputs.targets, inputs.batch)[matching.window]
        entropy = F.cross_entropy(logits.flatten(0, 2), clips.flatten(), reduction="none")
        mean = entropy.view(clips.shape).sum((1, 2)) / max(clips[0].numel(), 1)
        return {"span": mean, "giou": torch.zeros_like(mean)}


class LabelLoss:
    """``label``: cross entropy with down-weighted background, mean over all B x Q queries.

    ``class_error`` is the percentage of matched queries classified as background (reported only).
    """

    def __init__(self, background_weight: float) -> None:
        self.background_weight = background_weight

    def __call__(
        self, layers: LayerOutput, matching: Matching, inputs: LossInputs
    ) -> dict[str, Tensor]:
        """Named losses (K,) of K decoder layers."""
        log_probability = layers.logits.float().log_softmax(-1)
        foreground, background = log_probability.unbind(-1)
        is_foreground = torch.zeros_like(foreground, dtype=torch.bool)
        is_foreground[matching.queries] = True
        weighted = torch.where(is_foreground, foreground, self.background_weight * background)
        missed = layers.logits[matching.queries].argmax(-1) != FOREGROUND
        return {
            "label": -weighted.mean((1, 2)),
            "class_error": 100.0 * missed.sum(1) / max(missed.shape[1], 1),
        }


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Binary focal loss (Lin et al. 2017).

    Args:
        logits: (...) foreground logits.
        targets: (...) 0 or 1.
        alpha: weight of the foreground; the background has 1 - alpha.
        gamma: focusing exponent, at least 1.

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
    """Absolute error, quadratic below `beta`: (...) -> (...) float32; `beta` 0 gives plain L1."""
    return F.smooth_l1_loss(predicted.float(), true.float(), reduction="none", beta=beta)


def span_errors(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """How far spans are from their windows.

    Args:
        predicted: (..., 2) cxw.
        true: (..., 2) cxw of their windows.

    Returns:
        (...) each: absolute error (mean of centre and width), and 1 - gIoU.
    """
    giou = aligned_giou(cxw_to_xx(predicted), cxw_to_xx(true))
    return (predicted.float() - true.float()).abs().mean(-1), 1.0 - giou


class ContrastiveLoss:
    """``contrastive``: noise-contrastive estimate over the queries of a sample.

    E(q) = <query q, sum of the token vectors> / temperature; the loss is the batch mean of
    logsumexp(E) - mean of E over the matched queries. A sample without windows contributes 0.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(
        self, layers: LayerOutput, matching: Matching, inputs: LossInputs
    ) -> dict[str, Tensor]:
        """Named losses (K,) of K decoder layers."""
        queries, text = layers.extras["contrastive_query"], inputs.output.extras["contrastive_text"]
        energy = (queries @ text.unsqueeze(-1)).squeeze(-1).float() / self.temperature
        matched = torch.zeros_like(energy)
        matched[matching.queries] = 1.0
        count = matched.sum(-1)
        loss = energy.logsumexp(-1) - (energy * matched).sum(-1) / count.clamp(min=1.0)
        return {"contrastive": (loss * (count > 0)).mean(1)}
