"""Alignment of matched queries with the sentence (Moment-DETR, optional; baselines.md 7.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from mrmodel.losses.criterion import LossInputs
from mrmodel.losses.matching import Matching
from mrmodel.types import LayerOutput


class ContrastiveLoss:
    """``contrastive``: noise-contrastive estimate over the queries of a sample.

    E(q) = <query q, sum of the token vectors> / temperature; the loss is the batch mean of
    logsumexp(E) - mean of E over the matched queries. A sample without windows counts as 0.
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
