"""Pooling of a sequence into one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.models.layers.functional import full_precision


class AttentionPool(nn.Module):
    """Attention pooling with one learned query vector (UniVTG)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(hidden) * hidden**-0.5)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B, N, d), (B, N) with at least one valid row per sample -> (B, d) float32."""
        with full_precision(rows.device):
            rows = rows.float()
            scores = (rows @ self.direction.float()).masked_fill(~mask, -torch.inf)
            return (scores.softmax(1).unsqueeze(1) @ rows).squeeze(1)


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """(B, N, D), (B, N) -> (B, D): the mean of the valid rows, zero if there are none."""
    weights = mask.unsqueeze(-1)
    total = rows.masked_fill(~weights, 0.0).sum(1)
    mean: Tensor = total / weights.sum(1).clamp(min=1)
    return mean
