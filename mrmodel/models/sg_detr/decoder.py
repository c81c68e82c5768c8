"""The decoder: DAB conditioning on spans, DINO's refinement with look forward twice (4.6)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mrmodel.models.layers.dab_decoder import DabDecoderLayer
from mrmodel.models.layers.feed_forward import Mlp
from mrmodel.models.layers.functional import Stack, full_precision, xavier_matrices
from mrmodel.models.layers.position import span_positions
from mrmodel.models.sg_detr.output import Heads
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.spans import inverse_sigmoid

NARROWEST = 0.02  # the width modulation divides by the width


class PredictionHeads(nn.Module):
    """Moment logit, span offset and, if wanted, IoU logit of a decoder state."""

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        hidden = settings.hidden
        self.moment = nn.Linear(hidden, 1)
        self.offset = Mlp(hidden, hidden, 2, 3)
        self.iou = Mlp(hidden, hidden, 1, 3) if settings.iou_head else None
        # At first every layer keeps the reference that it was given.
        nn.init.zeros_(self.offset[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.offset[-1].bias)  # type: ignore[arg-type]

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Moment and IoU logits (...) of states (..., d)."""
        ious = None if self.iou is None else self.iou(states).squeeze(-1)
        return self.moment(states).squeeze(-1), ious


class SgDecoder(nn.Module):
    """Stack of `DabDecoderLayer`s over groups of queries, with the heads of all layers."""

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        hidden = self.hidden = settings.hidden
        self.settings = settings.decoder
        self.layers: Stack[DabDecoderLayer] = Stack(
            DabDecoderLayer(settings, first=i == 0) for i in range(settings.decoder.layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.query_position = Mlp(hidden, hidden, hidden, 2)
        self.query_scale = Mlp(hidden, hidden, hidden, 2) if settings.decoder.layers > 1 else None
        self.width_scale = Mlp(hidden, hidden, 1, 2) if settings.decoder.modulate else None
        xavier_matrices(self)  # before the heads, whose last layer starts at zero
        heads = PredictionHeads(settings)
        n_heads = 1 if settings.decoder.share_heads else settings.decoder.layers
        self.heads: Stack[PredictionHeads] = Stack(
            [heads, *(copy.deepcopy(heads) for _ in range(n_heads - 1))]
        )

    def forward(
        self,
        queries: tuple[Tensor, Tensor],
        memory: tuple[Tensor, Tensor],
        allowed: Tensor | None,
        mutual: Tensor | None,
    ) -> Heads:
        """Refine the spans layer by layer.

        Args:
            queries: contents (B, P, d) and reference spans (B, P, 2) in [0, 1].
            memory: clips (B, L, d) and their position codes (B or 1, L, d).
            allowed: clips that may be read, as in `attend`.
            mutual: queries that a query may read, as in `attend`.

        Returns:
            Heads of all layers. With ``look_forward: twice`` a layer's span passes its gradient on
            to the offset of the layer before it, and no further.
        """
        target, reference = queries
        before = reference = reference.float()
        states, offsets, starts = [], [], []
        heads = list(self.heads) * (len(self.layers) // len(self.heads))
        for i, layer in enumerate(self.layers):
            codes = self._codes(reference, target, first=i == 0)
            target = layer(target, codes, memory, allowed, mutual)
            state = self.norm(target).float()
            with full_precision(state.device):
                offset = heads[i].offset(state)
            states.append(state)
            offsets.append(offset)
            starts.append(before)
            refined = (offset + inverse_sigmoid(reference.detach())).sigmoid()
            before = refined if self.settings.look_forward == "twice" else refined.detach()
            reference = refined.detach()
        # What no layer waits for is computed of all layers at once.
        spans = (torch.stack(offsets) + inverse_sigmoid(torch.stack(starts))).sigmoid()
        logits, ious = self._logits(torch.stack(states))
        return Heads(logits, spans, ious)

    def _logits(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Moment and IoU logits (K, B, P) of states (K, B, P, d)."""
        with full_precision(states.device):
            if len(self.heads) == 1:
                found: tuple[Tensor, Tensor | None] = self.heads[0](states)
                return found
            pairs = [heads(state) for heads, state in zip(self.heads, states, strict=True)]
        logits, ious = zip(*pairs, strict=True)
        return torch.stack(logits), None if ious[0] is None else torch.stack(ious)

    def _codes(self, span: Tensor, target: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        """The query code and the modulated span code, (B, P, d) each."""
        code = span_positions(span, self.hidden)
        query = self.query_position(code)
        if not first and self.query_scale is not None:
            code = code * self.query_scale(target)
        if self.width_scale is not None:
            narrowed = span[..., 1:].clamp(min=NARROWEST)
            code = code * (self.width_scale(target).sigmoid() / narrowed)
        return query, code
