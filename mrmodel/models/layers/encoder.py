"""Encoder layers: self-attention, and attention from clips to tokens."""

from __future__ import annotations

from torch import Tensor, nn

from mrmodel.models.layers.attention import Inputs, MultiheadAttention
from mrmodel.models.layers.feed_forward import Activation, FeedForward
from mrmodel.models.settings import LayerSettings


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward; queries and keys carry positions, values do not.

    Post-norm: x <- LN1(x + Drop(attention)), x <- LN2(x + Drop(ffn(x))). With `pre_norm` the inputs
    of the two branches are normalised instead.
    """

    def __init__(
        self, settings: LayerSettings, activation: Activation, pre_norm: bool = False
    ) -> None:
        super().__init__()
        hidden, p = settings.hidden, settings.dropout
        self.attention = MultiheadAttention(hidden, settings.heads, p, settings.drop)
        self.ffn = FeedForward(hidden, settings.ffn, p, activation, settings.drop)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.pre_norm = pre_norm

    def forward(self, sequence: Tensor, position: Tensor, allowed: Tensor | None) -> Tensor:
        """(B, T, d), positions (B or 1, T, d), `allowed` as in `attend` -> (B, T, d)."""
        source = self.norm1(sequence) if self.pre_norm else sequence
        located = source + position
        inputs = Inputs(located, located, source)
        if self.pre_norm:
            sequence = self.attention(inputs, allowed, sequence, None)
            encoded: Tensor = self.ffn(self.norm2(sequence), sequence, None)
        else:
            sequence = self.attention(inputs, allowed, sequence, self.norm1)
            encoded = self.ffn(sequence, sequence, self.norm2)
        return encoded


class ReadingLayer(nn.Module):
    """Cross-attention from one modality to the other, and feed-forward.

    Post-norm: x <- LN1(x + Drop(attention)), x <- LN2(x + Drop(ffn(x))).
    """

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__()
        hidden, p = settings.hidden, settings.dropout
        self.attention = MultiheadAttention(hidden, settings.heads, p, settings.drop)
        self.ffn = FeedForward(hidden, settings.ffn, p, "prelu", settings.drop)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def keys_and_values(self, state: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Project (B, T, d) to keys and values; positions are added to the keys only."""
        if position is None:
            return self.attention.project_key_and_value(state)
        return self.attention.project_key(state + position), self.attention.project_value(state)

    def forward(
        self,
        state: Tensor,
        position: Tensor | None,
        read: tuple[Tensor, Tensor],
        allowed: Tensor | None,
    ) -> Tensor:
        """Attend to the other modality.

        Args:
            state: (B, S, d).
            position: (B or 1, S, d) codes added to the queries.
            read: projected keys and values (k B, T, d); with k = 2 each sample reads its own
                sentence and a negative one, in the two halves of the output.
            allowed: as in `attend`.

        Returns:
            (k B, S, d).
        """
        keys, values = read
        queries = self.attention.project_query(state if position is None else state + position)
        if len(keys) != len(state):
            copies = len(keys) // len(state)
            state, queries = state.repeat(copies, 1, 1), queries.repeat(copies, 1, 1)
        return self._mix(Inputs(queries, keys, values), allowed, state)

    def _mix(self, projected: Inputs, allowed: Tensor | None, state: Tensor) -> Tensor:
        state = self.attention.read(projected, allowed, state, self.norm1)
        mixed: Tensor = self.ffn(state, state, self.norm2)
        return mixed


class TextToVideoLayer(ReadingLayer):
    """Cross-attention from clips to the sentence (QD-DETR).

    As in the published code the feed-forward reads LN1(r), but its output is added to r itself
    before LN2.
    """

    def _mix(self, projected: Inputs, allowed: Tensor | None, state: Tensor) -> Tensor:
        read = self.attention.read(projected, allowed, state, None)
        mixed: Tensor = self.ffn(self.norm1(read), read, self.norm2)
        return mixed
