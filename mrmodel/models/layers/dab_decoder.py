"""The DAB-DETR-style decoder of QD-DETR: queries are spans that each layer refines."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.models.layers.attention import attend, interleave_heads
from mrmodel.models.layers.dropout import branch_dropout
from mrmodel.models.layers.feed_forward import FeedForward, Mlp, add_projected
from mrmodel.models.layers.functional import Stack
from mrmodel.models.layers.position import span_positions
from mrmodel.models.settings import DetrSettings, LayerSettings
from mrmodel.spans import inverse_sigmoid


class DabDecoder(nn.Module):
    """Stack of `DabDecoderLayer`s around reference spans (centre, width)."""

    def __init__(self, settings: DetrSettings) -> None:
        super().__init__()
        hidden = self.hidden = settings.hidden
        self.layers: Stack[DabDecoderLayer] = Stack(
            DabDecoderLayer(settings, first=i == 0) for i in range(settings.decoder_layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.query_scale = Mlp(hidden, hidden, hidden, 2)
        self.query_position = Mlp(hidden, hidden, hidden, 2)
        self.refinement = Mlp(hidden, hidden, 2, 3)
        self.width_scale = Mlp(hidden, hidden, 1, 2)
        nn.init.zeros_(self.refinement[-1].bias)  # type: ignore[arg-type]

    def forward(
        self, anchors: Tensor, memory: Tensor, position: Tensor, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Refine the spans layer by layer.

        Args:
            anchors: (Q, 2) learned spans before the sigmoid.
            memory: (B, L, d) encoded clips.
            position: (B or 1, L, d) codes of the clips.
            allowed: as in `attend`.

        Returns:
            Normalised states (layers, B, Q, d), and the reference spans (layers, B, Q, 2) of each
            layer's input. A reference propagates gradients from the heads that read it, but not
            from the layer that starts from it.
        """
        # All samples are identical until the first layer reads the memory: batch size 1 until then.
        reference = start = anchors.sigmoid().unsqueeze(0)
        target = memory.new_zeros(1, len(anchors), self.hidden)
        targets: list[Tensor] = []
        references: list[Tensor] = []
        for layer in self.layers:
            if targets:
                reference = (self.refinement(target) + inverse_sigmoid(start)).sigmoid()
                start = reference.detach()
            references.append(reference.expand(len(memory), -1, -1))
            queries = self._codes(start, target, scaled=bool(targets))
            target = layer(target, queries, (memory, position), allowed)
            targets.append(target)
        return self.norm(torch.stack(targets)), torch.stack(references)

    def _codes(self, span: Tensor, target: Tensor, scaled: bool) -> tuple[Tensor, Tensor]:
        """The query code and the modulated span code, (B or 1, Q, d) each."""
        code = span_positions(span, self.hidden)
        query = self.query_position(code)
        if scaled:
            code = code * self.query_scale(target)
        # As published: one factor for all channels, including the centre's half.
        return query, code * (self.width_scale(target).sigmoid() / span[..., 1:])


class DabDecoderLayer(nn.Module):
    """Self-attention, cross-attention on content and span codes, PReLU feed-forward.

    Args:
        settings: sizes and dropout.
        first: positions are added to queries and keys of the cross-attention.
        rekeyed: the keys' positions of the self-attention are made from the projected positions of
            the queries, as in the published SG-DETR.
    """

    def __init__(self, settings: LayerSettings, first: bool, rekeyed: bool = False) -> None:
        super().__init__()
        hidden, self.heads = settings.hidden, settings.heads
        self.rekeyed = rekeyed

        def linear() -> nn.Linear:
            return nn.Linear(hidden, hidden)

        self.self_query_content, self.self_query_position = linear(), linear()
        self.self_key_content, self.self_key_position = linear(), linear()
        self.self_value, self.self_output = linear(), linear()
        self.cross_query_content, self.cross_query_span = linear(), linear()
        self.cross_query_position = linear() if first else None
        self.cross_key_content, self.cross_key_position = linear(), linear()
        self.cross_value, self.cross_output = linear(), linear()
        self.ffn = FeedForward(hidden, settings.ffn, settings.dropout, "prelu", settings.drop)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.norm3 = nn.LayerNorm(hidden)
        self.branch = branch_dropout(settings.dropout, settings.drop)
        self.weights_p = settings.dropout
        nn.init.zeros_(self.self_output.bias)
        nn.init.zeros_(self.cross_output.bias)

    def forward(
        self,
        target: Tensor,
        query: tuple[Tensor, Tensor],
        memory: tuple[Tensor, Tensor],
        allowed: Tensor | None,
        mutual: Tensor | None = None,
    ) -> Tensor:
        """Apply the layer.

        Args:
            target: (B or 1, Q, d).
            query: position code and modulated span code of the queries, (B or 1, Q, d) each.
            memory: encoded clips (B, L, d) and their position codes (B or 1, L, d).
            allowed: clips that may be read, as in `attend`.
            mutual: queries that a query may read, as in `attend`.

        Returns:
            (B, Q, d).
        """
        position, span = query
        mixed = self._mix(target, position, len(memory[0]), mutual)
        target = target.expand(len(memory[0]), -1, -1)
        target = add_projected(mixed, target, self.self_output, self.branch, self.norm1)
        read = self._read(target, position, span, memory, allowed)
        target = add_projected(read, target, self.cross_output, self.branch, self.norm2)
        decoded: Tensor = self.ffn(target, target, self.norm3)
        return decoded

    def _mix(self, target: Tensor, position: Tensor, size: int, mutual: Tensor | None) -> Tensor:
        located = self.self_query_position(position)
        queries = self.self_query_content(target) + located
        located = self.self_key_position(located if self.rekeyed else position)
        keys = self.self_key_content(target) + located
        rows = [t.expand(size, -1, -1) for t in (queries, keys, self.self_value(target))]
        return attend(rows[0], rows[1], rows[2], self.heads, mutual, self._p)

    def _read(
        self,
        target: Tensor,
        position: Tensor,
        span: Tensor,
        memory: tuple[Tensor, Tensor],
        allowed: Tensor | None,
    ) -> Tensor:
        clips, clip_position = memory
        queries, keys = self.cross_query_content(target), self.cross_key_content(clips)
        key_position = self.cross_key_position(clip_position)
        if self.cross_query_position is not None:
            queries = queries + self.cross_query_position(position)
            keys = keys + key_position
        queries = interleave_heads(queries, self.cross_query_span(span), self.heads)
        keys = interleave_heads(keys, key_position, self.heads)
        return attend(queries, keys, self.cross_value(clips), self.heads, allowed, self._p)

    @property
    def _p(self) -> float:
        return self.weights_p if self.training else 0.0
