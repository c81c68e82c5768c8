"""The DETR decoder layer of Moment-DETR."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from mrmodel.models.layers.attention import Inputs, MultiheadAttention
from mrmodel.models.layers.feed_forward import FeedForward
from mrmodel.models.settings import DetrSettings


class Memory(NamedTuple):
    """Keys and values of the decoder's cross-attention.

    `content` (B, T, d), `located` = content + positions, `allowed` as in `attend`.
    """

    content: Tensor
    located: Tensor
    allowed: Tensor | None


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the memory; ReLU feed-forward; three norms.

    Post-norm as in `EncoderLayer`; with `pre_norm` each branch is normalised at its input.
    """

    def __init__(self, settings: DetrSettings, pre_norm: bool = False) -> None:
        super().__init__()
        hidden, p = settings.hidden, settings.dropout
        self.self_attention = MultiheadAttention(hidden, settings.heads, p, settings.drop)
        self.cross_attention = MultiheadAttention(hidden, settings.heads, p, settings.drop)
        self.ffn = FeedForward(hidden, settings.ffn, p, "relu", settings.drop)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.norm3 = nn.LayerNorm(hidden)
        self.pre_norm = pre_norm

    def forward(self, target: Tensor, query: Tensor, memory: Memory) -> Tensor:
        """Target (B, Q, d), learned query codes (Q, d) -> (B, Q, d)."""
        before, after = (True, False) if self.pre_norm else (False, True)
        source = self.norm1(target) if before else target
        located = source + query
        inputs = Inputs(located, located, source)
        target = self.self_attention(inputs, None, target, self.norm1 if after else None)

        source = self.norm2(target) if before else target
        inputs = Inputs(source + query, memory.located, memory.content)
        target = self.cross_attention(inputs, memory.allowed, target, self.norm2 if after else None)

        source = self.norm3(target) if before else target
        decoded: Tensor = self.ffn(source, target, self.norm3 if after else None)
        return decoded
