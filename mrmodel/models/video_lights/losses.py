"""Losses on the vector of a sample's clip scores (docs/models/video_lights.md, section 6.1).

They compare directions: scores are shifted to a minimum of 0 and scaled to unit length, and so are
the labels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.criterion import LossInputs

# Losses whose weight is multiplied by the epoch number, counted from 1.
HARD_LOSSES = ("hard_negative", "hard_positive")


class DirectionLosses:
    """Cosine and squared distances between the clip scores of a sample and its labels.

    * ``task_specific``: 1 - cosine of the scores; ``task_coupled``: of the scores derived from the
      best window (`MomentToHighlight`); ``video_text``: of the cosines of refined clips and the
      mean token. Sum (or mean) over the batch.
    * ``hard_negative``: squared distance over clips with label 0, ``hard_positive``: over the
      others; each divided by the number of all clips. Mean over the batch.

    A sample without relevant clips contributes 0.

    Args:
        batch_reduction: of the cosine terms; the published sum makes their weight grow with the
            batch size.
        legacy_padding: as published: the minimum is taken over the whole batch, padding included;
            padded clips and samples without relevant clips contribute.
    """

    def __init__(
        self, batch_reduction: Literal["sum", "mean"], legacy_padding: bool = False
    ) -> None:
        self.batch_reduction, self.legacy_padding = batch_reduction, legacy_padding

    def __call__(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Named scalars; terms whose scores are missing in the output's `extras` are skipped."""
        labels, mask = inputs.targets.saliency_labels, inputs.batch.video_mask
        if self.legacy_padding:
            mask = torch.ones_like(mask)
        truth = F.normalize(labels, dim=1)
        counts = torch.ones_like(labels[:, 0]) if self.legacy_padding else (labels > 0).any(1)
        scores = {"task_specific": inputs.output.saliency}
        others = {"task_coupled": "window_saliency", "video_text": "video_text_cosine"}
        extras = inputs.output.extras
        scores |= {name: extras[key] for name, key in others.items() if key in extras}
        rows = self._direction(torch.stack(list(scores.values())), mask)
        cosines = self._cosine_losses(rows, truth, counts)
        losses = dict(zip(scores, cosines.unbind(), strict=True))
        error = (rows[0] - truth).square() * counts.unsqueeze(1)
        parts = {"hard_negative": labels <= 0, "hard_positive": labels > 0}
        for name, part in parts.items():
            losses[name] = ((error * (part & mask)).sum(1) / mask.sum(1)).mean()
        return losses

    def _direction(self, scores: Tensor, mask: Tensor) -> Tensor:
        """(K, B, L) unit vectors, 0 at padding; all 0 without gradient if the scores are equal."""
        scores = scores.float()
        if self.legacy_padding:
            return F.normalize(scores - scores.amin((1, 2), keepdim=True), dim=2)
        least = scores.masked_fill(~mask, torch.inf).amin(2, keepdim=True)
        moved = (scores - least).masked_fill(~mask, 0.0)
        # The gradient of x / |x| is unbounded near 0 and would dominate all others.
        return F.normalize(moved.masked_fill(~moved.any(2, keepdim=True), 0.0), dim=2)

    def _cosine_losses(self, rows: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
        """(K,) of K kinds of scores."""
        error = (1.0 - (rows * truth).sum(2)) * counts
        return error.sum(1) if self.batch_reduction == "sum" else error.mean(1)
