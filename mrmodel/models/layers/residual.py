"""The step that ends every branch of a transformer layer."""

from __future__ import annotations

from torch import Tensor, nn

from mrmodel.models.layers import fused
from mrmodel.models.layers.dropout import BranchDropout


def add_projected(
    source: Tensor,
    residual: Tensor,
    linear: nn.Linear,
    dropout: BranchDropout,
    norm: nn.LayerNorm | None,
) -> Tensor:
    """norm(residual + dropout(linear(source))), (B, ..., d); without `norm` the sum itself."""
    if fused.usable(residual, dropout.training):
        return fused.add_projected(source, residual, linear, norm, dropout)
    total: Tensor = residual + dropout(linear(source))
    return total if norm is None else norm(total)
