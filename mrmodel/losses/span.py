"""Losses of matched windows (baselines.md, section 7.1)."""

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

    Both means run over the matched windows of a layer; without any they are 0.
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
    """``label``: cross entropy, background weighted down, plain mean over all B x Q queries.

    ``class_error`` is the share of matched queries called background, in percent (reported only).
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
