"""Position codes of clips, spans and tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mrmodel.models.layers.dropout import Dropout

TEMPERATURE = 10000.0


def clip_positions(mask: Tensor, hidden: int) -> Tensor:
    """Sine code of the cumulative count of valid clips, scaled to 2 pi at the last valid clip.

    Padding repeats the last code, so a sample's codes do not depend on its batch.

    Args:
        mask: (B, L) bool.
        hidden: channels d, even.

    Returns:
        (B, L, d) float32; on a CPU (1, L, d) when all samples have the same length, so that
        results that depend on positions alone are computed once per batch.
    """
    if mask.device.type == "cpu" and bool((mask == mask[:1]).all()):
        mask = mask[:1]
    count = mask.cumsum(1).float()
    return sine_code(count / (count[:, -1:] + 1e-6), hidden)


def repeat_positions(position: Tensor, size: int) -> Tensor:
    """Repeat codes (B, L, d) for k B sequences; shared codes (1, L, d) are returned as they are."""
    return position if len(position) == 1 else position.repeat(size // len(position), 1, 1)


def span_positions(spans_cxw: Tensor, hidden: int) -> Tensor:
    """Code of a reference span: d/2 channels for the centre, then d/2 for the width.

    The published code is written for 2 x 128 channels; here each half has d/2.

    Args:
        spans_cxw: (..., 2) in [0, 1].
        hidden: channels d, a multiple of 4.

    Returns:
        (..., d) float32.
    """
    return sine_code(spans_cxw, hidden // 2).flatten(-2)


def sine_code(fractions: Tensor, channels: int) -> Tensor:
    """Channel i is sin (i even) or cos (i odd) of 2 pi x / 10000^(2 floor(i/2) / channels).

    Args:
        fractions: (...) in [0, 1].
        channels: an even number.

    Returns:
        (..., channels) float32.
    """
    pairs = torch.arange(channels // 2, device=fractions.device, dtype=torch.float32)
    angles = (fractions.float() * (2 * math.pi)).unsqueeze(-1) / TEMPERATURE ** (
        2 * pairs / channels
    )
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class TextPositions(nn.Module):
    """Learned positions of tokens; as published, the code includes the token itself."""

    def __init__(self, max_tokens: int, hidden: int, p: float) -> None:
        super().__init__()
        self.table = nn.Embedding(max_tokens, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = Dropout(p)

    def forward(self, text: Tensor) -> Tensor:
        """(B, N, d) projected tokens -> (B, N, d); N must not exceed the table."""
        code: Tensor = self.dropout(self.norm(text + self.table.weight[: text.shape[1]]))
        return code
