"""Input projection: from features to the hidden width."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from mrmodel.models.layers import cpu_kernels
from mrmodel.models.layers.dropout import Dropout
from mrmodel.models.layers.functional import Stack
from mrmodel.models.layers.position import TextPositions
from mrmodel.models.settings import ProjectionSettings


class ProjectionLayer(nn.Module):
    """LayerNorm -> dropout -> Linear -> ReLU (the ReLU only with `relu`).

    With a `kernel` above 1 (an odd number) the linear layer is a 1-D convolution of that size,
    zero-padded at masked positions and beyond both ends.
    """

    def __init__(self, width: int, hidden: int, p: float, relu: bool, kernel: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(p)
        self.linear: nn.Linear | nn.Conv1d = (
            nn.Linear(width, hidden)
            if kernel == 1
            else nn.Conv1d(width, hidden, kernel, padding=kernel // 2)
        )
        self.relu = relu

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, width) -> (B, L, hidden); the mask (B, L) is used by convolutions only."""
        if isinstance(self.linear, nn.Conv1d):
            rows = self.dropout(self.norm(features))
            rows = rows if mask is None else rows.masked_fill(~mask.unsqueeze(-1), 0.0)
            projected: Tensor = self.linear(rows.transpose(1, 2)).transpose(1, 2)
        elif cpu_kernels.usable(features, self.training):
            projected = cpu_kernels.project(features, self.norm, self.linear, self.dropout.p)
        else:
            projected = self.linear(self.dropout(self.norm(features)))
        return projected.relu() if self.relu else projected


class InputProjection(Stack[ProjectionLayer]):
    """Projection layers from `width` to the hidden width, ReLU after all but the last one."""

    def __init__(self, width: int, settings: ProjectionSettings, kernel: int = 1) -> None:
        hidden, p, layers = settings.hidden, settings.input_dropout, settings.projection_layers
        widths = [width] + [hidden] * (layers - 1)
        super().__init__(
            ProjectionLayer(w, hidden, p, i + 1 < layers, kernel) for i, w in enumerate(widths)
        )

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, width) -> (B, L, hidden); mask (B, L) or None = nothing is padded."""
        for layer in self:
            features = layer(features, mask)
        return features


class Projected(NamedTuple):
    """Clips (B, L, d), tokens (B, N, d) and optional position codes of the tokens (B, N, d)."""

    video: Tensor
    text: Tensor
    text_position: Tensor | None


class InputProjections(nn.Module):
    """Projections of clips and tokens, and optional learned positions of the tokens."""

    def __init__(
        self, video_dim: int, text_dim: int, settings: ProjectionSettings, kernel: int = 1
    ) -> None:
        super().__init__()
        self.video = InputProjection(video_dim, settings, kernel)
        self.text = InputProjection(text_dim, settings, kernel)
        self.text_positions = (
            TextPositions(settings.max_tokens, settings.hidden, settings.input_dropout)
            if settings.text_positions
            else None
        )

    def forward(
        self, video: Tensor, text: Tensor, masks: tuple[Tensor, Tensor] | None = None
    ) -> Projected:
        """Project prepared features (B, L, Dv) and (B, N, Dt) to the hidden width.

        The masks (B, L) and (B, N) are needed if `kernel` is above 1.
        """
        video_mask, text_mask = (None, None) if masks is None else masks
        clips, tokens = self.video(video, video_mask), self.text(text, text_mask)
        position = None if self.text_positions is None else self.text_positions(tokens)
        return Projected(clips, tokens, position)
