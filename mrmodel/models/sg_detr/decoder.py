"""The decoder: queries are spans that each layer refines (DAB-DETR), look forward twice (DINO).

Follows the published code; docs/models/sg_detr.md, section 5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.models.layers.dab_decoder import DabDecoderLayer
from mrmodel.models.layers.feed_forward import Mlp, xavier_chain, xavier_feed_forward
from mrmodel.models.layers.functional import copies_of, full_precision, xavier_matrices
from mrmodel.models.layers.position import span_positions
from mrmodel.models.sg_detr.anchor_head import prior_logit
from mrmodel.models.sg_detr.conv import FIRST_WEIGHTS
from mrmodel.models.sg_detr.output import Heads
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.spans import inverse_sigmoid


class SgDecoder(nn.Module):
    """Stack of `DabDecoderLayer`s over groups of queries, with heads that the layers share.

    References move by `refinement`, which reads the state; predictions by `span_head`, which reads
    the normed state and starts from the reference of the layer before.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        hidden = self.hidden = settings.hidden
        layer = DabDecoderLayer(settings, first=False, rekeyed=True)
        xavier_matrices(layer)
        xavier_feed_forward(layer)
        self.layers = copies_of(layer, settings.decoder_layers)
        self.norm = nn.LayerNorm(hidden)
        self.query_position = Mlp(hidden, hidden, hidden, 2)
        self.query_scale = Mlp(hidden, hidden, hidden, 2)
        self.width_scale = Mlp(hidden, hidden, 1, 2)
        self.refinement = Mlp(hidden, hidden, 2, 3)
        self.class_head = nn.Linear(hidden, 1)
        self.span_head = Mlp(hidden, hidden, 2, 3)
        self.iou_head = Mlp(2 * hidden, hidden, 1, 3) if settings.iou_head else None
        for mlp in (self.query_position, self.query_scale, self.width_scale):
            xavier_chain(mlp)
        for mlp in (self.refinement, self.span_head):
            xavier_chain(mlp)
            # At first every span stays where it is.
            nn.init.zeros_(mlp[-1].weight)  # type: ignore[arg-type]
        if self.iou_head is not None:
            xavier_chain(self.iou_head)
        nn.init.normal_(self.class_head.weight, std=FIRST_WEIGHTS)
        nn.init.constant_(self.class_head.bias, prior_logit(settings.prior))

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
            Heads of all layers, in eval mode of the last one. A layer's span has gradient into the
            refinement of the layer before it, and no further; its IoU logit has none into its own
            refinement.
        """
        state, reference = queries
        start = reference = reference.float()
        states, starts, refined = [], [], []
        for i, layer in enumerate(self.layers):
            codes = self._codes(reference, state)
            state = layer(state, codes, memory, allowed, mutual)
            states.append(state.float())
            starts.append(start)
            # The last refinement is only read by the IoU head, without gradient.
            with (
                full_precision(state.device),
                torch.set_grad_enabled(torch.is_grad_enabled() and i + 1 < len(self.layers)),
            ):
                moved = self.refinement(states[-1])
                start = (moved + inverse_sigmoid(reference)).sigmoid()
            reference = start.detach()
            refined.append(start.detach())
        read = slice(None) if self.training else slice(-1, None)
        return self._heads(
            torch.stack(states[read]), torch.stack(starts[read]), torch.stack(refined[read])
        )

    def _codes(self, span: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The query code and the modulated span code, (B, P, d) each."""
        code = span_positions(span, self.hidden)
        query = self.query_position(code)
        modulation = self.width_scale(state).sigmoid() / span[..., 1:]
        return query, code * self.query_scale(state) * modulation

    def _heads(self, states: Tensor, starts: Tensor, refined: Tensor) -> Heads:
        """Predictions of K layers at once: states (K, B, P, d), spans (K, B, P, 2)."""
        with full_precision(states.device):
            normed = self.norm(states)
            logits = self.class_head(normed).squeeze(-1)
            spans = (self.span_head(normed) + inverse_sigmoid(starts)).sigmoid()
            ious = logits
            if self.iou_head is not None:
                code = span_positions(refined, self.hidden)
                ious = self.iou_head(torch.cat((states, code), dim=-1)).squeeze(-1)
        return Heads(logits, spans, ious)
