"""The DETR decoder layer of Moment-DETR."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from mrmodel.models.layers.attention import MultiheadAttention
from mrmodel.models.layers.dropout import Dropout
from mrmodel.models.layers.feed_forward import FeedForward
from mrmodel.models.settings import DetrSettings


class Memory(NamedTuple):
    """What the decoder reads: `content` (B, T, d) and `located` = content + positions."""

    content: Tensor
    located: Tensor


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the memory; ReLU feed-forward; three norms."""

    def __init__(self, settings: DetrSettings, pre_norm: bool = False) -> None:
        super().__init__()
        hidden, p = settings.hidden, settings.dropout
        self.self_attention = MultiheadAttention(hidden, settings.heads, p)
        self.cross_attention = MultiheadAttention(hidden, settings.heads, p)
        self.ffn = FeedForward(hidden, settings.ffn, p, "relu")
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.norm3 = nn.LayerNorm(hidden)
        self.dropout = Dropout(p)
        self.pre_norm = pre_norm

    def forward(
        self, target: Tensor, query: Tensor, memory: Memory, allowed: Tensor | None
    ) -> Tensor:
        """Target (B, Q, d), learned query codes (Q, d) -> (B, Q, d)."""
        if self.pre_norm:
            target = target + self.dropout(self._mix(self.norm1(target), query))
            target = target + self.dropout(self._read(self.norm2(target), query, memory, allowed))
            target = target + self.dropout(self.ffn(self.norm3(target)))
        else:
            target = self.norm1(target + self.dropout(self._mix(target, query)))
            target = self.norm2(target + self.dropout(self._read(target, query, memory, allowed)))
            target = self.norm3(target + self.dropout(self.ffn(target)))
        return target

    def _mix(self, target: Tensor, query: Tensor) -> Tensor:
        located = target + query
        mixed: Tensor = self.self_attention(located, located, target, None)
        return mixed

    def _read(
        self, target: Tensor, query: Tensor, memory: Memory, allowed: Tensor | None
    ) -> Tensor:
        read: Tensor = self.cross_attention(target + query, memory.located, memory.content, allowed)
        return read
