"""Likeness of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mrmodel.models.layers.full_precision import full_precision

NORM_FLOOR = 1e-6


def pairwise_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of rows, (B, L, D), (B, N, D) -> (B, L, N), in float32; 0 with a row of zeros."""
    first, second = first.float(), second.float()
    with full_precision(first.device):
        products = first @ second.transpose(1, 2)
    return products / (_length(first) * _length(second).transpose(1, 2))


def _length(rows: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, 1)."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return length.clamp(min=NORM_FLOOR)
