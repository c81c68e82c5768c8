"""From features to the hidden width (baselines.md, section 2: "input projection")."""

from __future__ import annotations

from torch import Tensor, nn

from mrmodel.models.layers import fused
from mrmodel.models.layers.dropout import Dropout


class ProjectionLayer(nn.Module):
    """LayerNorm -> dropout -> Linear -> ReLU (the last one only where `relu` says so)."""

    def __init__(self, width: int, hidden: int, p: float, relu: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(p)
        self.linear = nn.Linear(width, hidden)
        self.relu = relu

    def forward(self, features: Tensor) -> Tensor:
        """(B, L, width) -> (B, L, hidden)."""
        if fused.usable(features, self.training):
            projected = fused.project(features, self.norm, self.linear, self.dropout.p)
        else:
            projected = self.linear(self.dropout(self.norm(features)))
        return projected.relu() if self.relu else projected


def input_projection(width: int, hidden: int, p: float, layers: int) -> nn.Sequential:
    """`layers` projection layers, ReLU after all but the last one."""
    widths = [width] + [hidden] * (layers - 1)
    return nn.Sequential(
        *(ProjectionLayer(w, hidden, p, relu=i + 1 < layers) for i, w in enumerate(widths))
    )
