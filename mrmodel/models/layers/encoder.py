"""Encoder layers: self-attention, and attention from clips to tokens."""

from __future__ import annotations

from torch import Tensor, nn

from mrmodel.models.layers.attention import MultiheadAttention
from mrmodel.models.layers.dropout import Dropout
from mrmodel.models.layers.feed_forward import Activation, FeedForward
from mrmodel.models.settings import DetrSettings


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward; queries and keys carry positions, values do not.

    Post-norm: x <- LN1(x + Drop(attention)), x <- LN2(x + Drop(ffn(x))). With `pre_norm` the norms
    are at the entries of the two branches instead.
    """

    def __init__(
        self, settings: DetrSettings, activation: Activation, pre_norm: bool = False
    ) -> None:
        super().__init__()
        hidden, p = settings.hidden, settings.dropout
        self.attention = MultiheadAttention(hidden, settings.heads, p)
        self.ffn = FeedForward(hidden, settings.ffn, p, activation)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.dropout = Dropout(p)
        self.pre_norm = pre_norm

    def forward(self, sequence: Tensor, position: Tensor, allowed: Tensor | None) -> Tensor:
        """(B, T, d), positions (B, T, d), `allowed` as in `attend` -> (B, T, d)."""
        if self.pre_norm:
            sequence = sequence + self.dropout(self._mix(self.norm1(sequence), position, allowed))
            sequence = sequence + self.dropout(self.ffn(self.norm2(sequence)))
        else:
            sequence = self.norm1(sequence + self.dropout(self._mix(sequence, position, allowed)))
            sequence = self.norm2(sequence + self.dropout(self.ffn(sequence)))
        return sequence

    def _mix(self, sequence: Tensor, position: Tensor, allowed: Tensor | None) -> Tensor:
        located = sequence + position
        mixed: Tensor = self.attention(located, located, sequence, allowed)
        return mixed


class TextToVideoLayer(nn.Module):
    """Clips read the sentence (QD-DETR, section 4.1 of baselines.md).

    The published mixture of norms is kept: the feed-forward reads LN1(r), yet its output is added
    to r itself before LN2.
    """

    def __init__(self, settings: DetrSettings) -> None:
        super().__init__()
        hidden, p = settings.hidden, settings.dropout
        self.attention = MultiheadAttention(hidden, settings.heads, p)
        self.ffn = FeedForward(hidden, settings.ffn, p, "prelu")
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.dropout = Dropout(p)

    def forward(
        self,
        video: Tensor,
        position: Tensor,
        text: tuple[Tensor, Tensor],
        allowed: Tensor | None,
    ) -> Tensor:
        """Mix text into clips.

        Args:
            video: (B, L, d).
            position: (B, L, d) of the clips.
            text: projected keys and values, (k B, N, d) each; with k = 2 each clip reads its own
                sentence and a negative one, in two halves of the output.
            allowed: as in `attend`.

        Returns:
            (k B, L, d).
        """
        keys, values = text
        queries = self.attention.project_query(video + position)
        if len(keys) != len(video):
            copies = len(keys) // len(video)
            video, queries = video.repeat(copies, 1, 1), queries.repeat(copies, 1, 1)
        read = video + self.dropout(self.attention.read(queries, keys, values, allowed))
        mixed: Tensor = self.norm2(read + self.dropout(self.ffn(self.norm1(read))))
        return mixed
