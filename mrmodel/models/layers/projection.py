"""From features to the hidden width (baselines.md, section 2: "input projection")."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from mrmodel.models.layers import fused
from mrmodel.models.layers.dropout import Dropout
from mrmodel.models.layers.position import TextPositions
from mrmodel.models.settings import ProjectionSettings


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


class Projected(NamedTuple):
    """Clips (B, L, d), tokens (B, N, d) and, where they have any, codes of the tokens (B, N, d)."""

    video: Tensor
    text: Tensor
    text_position: Tensor | None


class InputProjections(nn.Module):
    """A projection of the clips, one of the tokens, and learned positions of tokens if wanted."""

    def __init__(self, video_dim: int, text_dim: int, settings: ProjectionSettings) -> None:
        super().__init__()
        hidden, p, layers = settings.hidden, settings.input_dropout, settings.projection_layers
        self.video = input_projection(video_dim, hidden, p, layers)
        self.text = input_projection(text_dim, hidden, p, layers)
        self.text_positions = (
            TextPositions(settings.max_tokens, hidden, p) if settings.text_positions else None
        )

    def forward(self, video: Tensor, text: Tensor) -> Projected:
        """Prepared rows (B, L, Dv) and (B, N, Dt) at the hidden width."""
        clips, tokens = self.video(video), self.text(text)
        position = None if self.text_positions is None else self.text_positions(tokens)
        return Projected(clips, tokens, position)
