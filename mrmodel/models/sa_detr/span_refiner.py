"""Span-aware refinement decoder: layers refine the queries' spans (SA-DETR, Sec. 3.4).

docs/models/sa_detr.md, section 2.10, describes the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mrmodel.models.layers.attention import (
    Inputs,
    MultiheadAttention,
    attend,
    attend_by,
    interleave_heads,
)
from mrmodel.models.layers.dropout import branch_dropout
from mrmodel.models.layers.feed_forward import FeedForward, Mlp, add_projected
from mrmodel.models.layers.functional import Stack, full_precision, key_mask, xavier_matrices
from mrmodel.models.layers.position import span_positions
from mrmodel.models.layers.query_groups import JoinedQueries
from mrmodel.models.sa_detr.settings import GaussMode, SaDetrSettings
from mrmodel.models.sa_detr.span_enhance import SpanEnhance
from mrmodel.spans import inverse_sigmoid

FLOOR = 1e-10  # the mask of a span far outside the clips underflows to 0
LOWEST_EXPONENT = -80.0


def gaussian_mask(
    spans_cxw: Tensor, clips: Tensor, length: int, alpha: float, offset: float = 0.5
) -> Tensor:
    """exp(-alpha (x_i - c)^2 / max(w, 1 / Lv)^2) with x_i = (i + offset) / Lv (eqs 5, 6; CNM).

    Args:
        spans_cxw: (B, P, 2).
        clips: (B,) valid clips Lv.
        length: clips L, padding included.
        alpha: rate of decay; the mask is exp(-alpha / 4) at the ends of the span.
        offset: 1/2 for the middles of the clips, 1 for their ends.

    Returns:
        (B, P, L) float32 in (0, 1].
    """
    centre, width = spans_cxw.float().unsqueeze(2).unbind(-1)
    clips = clips.float()[:, None, None]
    place = (torch.arange(length, device=spans_cxw.device) + offset) / clips
    distance = (place - centre) / width.maximum(1.0 / clips)
    return (-alpha * distance.square()).clamp(min=LOWEST_EXPONENT).exp()


def gaussian_weights(
    mode: GaussMode, gauss: Tensor | None, allowed: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """The function from attention scores to weights, for `attend_by`.

    ``mul_logits`` is softmax(score x mask), as in the paper: scores outside the span become 0, so
    those clips outweigh clips inside with negative scores. ``add_log`` is softmax(score + log
    mask): the weights times the mask, renormalised.

    Args:
        mode: how the mask is applied; ``none``: not at all.
        gauss: (B, P, L), see `gaussian_mask`; ignored with ``none``.
        allowed: as in `attend`; padding is masked after the modulation.
    """

    def weigh(scores: Tensor) -> Tensor:
        if gauss is not None and mode == "mul_logits":
            scores = scores * gauss.unsqueeze(1)
        elif gauss is not None and mode == "add_log":
            scores = scores + (gauss + FLOOR).log().unsqueeze(1)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        return scores.softmax(-1)

    return weigh


@dataclass(frozen=True, slots=True)
class SeenVideo:
    """Input of the refiner.

    Attributes:
        memory: clips (B, L, d).
        position: their codes (B or 1, L, d).
        mask: (B, L) bool.
        sentence: (B, d), None without span-based enhancement.
    """

    memory: Tensor
    position: Tensor
    mask: Tensor
    sentence: Tensor | None

    @property
    def clips(self) -> Tensor:
        """(B,) number of valid clips."""
        return self.mask.sum(1)


@dataclass(slots=True)
class RefinedQueries:
    """Predictions of S queries after each of K layers, float32.

    Attributes:
        quality_logits: (K, B, S) of the IoU with the best true window.
        spans_cxw: (K, B, S, 2) in [0, 1].
    """

    quality_logits: Tensor
    spans_cxw: Tensor

    def split(self, sizes: list[int]) -> list[RefinedQueries]:
        """The predictions of consecutive groups of queries."""
        logits = torch.split(self.quality_logits, sizes, 2)
        spans = torch.split(self.spans_cxw, sizes, 2)
        return [RefinedQueries(*pair) for pair in zip(logits, spans, strict=True)]


class RefinerLayer(nn.Module):
    """Self-attention, span-based enhancement, Gaussian cross-attention, feed-forward."""

    def __init__(self, settings: SaDetrSettings) -> None:
        super().__init__()
        hidden, p, drop = settings.hidden, settings.dropout, settings.drop
        self.heads, self.gauss = settings.heads, settings.gauss
        self.residual = settings.residual
        self.span_code = Mlp(hidden, hidden, hidden, 2)
        self.self_attention = MultiheadAttention(hidden, settings.heads, p, drop)
        self.enhance = SpanEnhance(settings) if settings.enhances else None
        self.cross_query, self.cross_key = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.cross_value, self.cross_output = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.ffn = FeedForward(hidden, settings.ffn, p, "prelu", drop)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.norm3 = nn.LayerNorm(hidden)
        self.branch = branch_dropout(p, drop)

    def forward(
        self, content: Tensor, spans_cxw: Tensor, seen: SeenVideo, mutual: Tensor | None
    ) -> Tensor:
        """Apply the layer.

        Args:
            content: (B, P, d).
            spans_cxw: (B, P, 2).
            seen: the video.
            mutual: self-attention mask, as in `attend`.

        Returns:
            (B, P, d).
        """
        code = self.span_code(span_positions(spans_cxw, content.shape[-1]))
        query, key, value = self.self_attention.project_all(content)
        mixed = Inputs(query + code, key + code, value)
        content = self.self_attention.read(mixed, mutual, content, self.norm1)
        if self.enhance is not None and seen.sentence is not None:
            content = self.enhance(content, spans_cxw, seen.memory, seen.sentence, seen.clips)
        content = self._read(content, code, spans_cxw, seen)
        refined: Tensor = self.ffn(content, content, self.norm3)
        return refined

    def _read(self, content: Tensor, code: Tensor, spans_cxw: Tensor, seen: SeenVideo) -> Tensor:
        """Cross-attention with scores modulated by the spans (eqs 4 to 6)."""
        query = self.cross_query(content)
        value, allowed = self.cross_value(seen.memory), key_mask(seen.mask)
        queries = interleave_heads(query, code, self.heads)
        keys = interleave_heads(self.cross_key(seen.memory), seen.position, self.heads)
        p = self.branch.p if self.training else 0.0
        if self.gauss.mode == "none":
            read = attend(queries, keys, value, self.heads, allowed, p)
        else:
            offset = 0.5 if self.gauss.pos == "center" else 1.0
            length = seen.mask.shape[1]
            mask = gaussian_mask(spans_cxw, seen.clips, length, self.gauss.alpha, offset)
            weigh = gaussian_weights(self.gauss.mode, mask, allowed)
            read = attend_by(queries, keys, value, self.heads, weigh, p)
        residual = query if self.residual == "query" else content
        return add_projected(read, residual, self.cross_output, self.branch, self.norm2)


class SpanRefiner(nn.Module):
    """Stack of `RefinerLayer`s with shared heads."""

    def __init__(self, settings: SaDetrSettings) -> None:
        super().__init__()
        hidden = settings.hidden
        self.update = settings.update
        self.layers: Stack[RefinerLayer] = Stack(
            RefinerLayer(settings) for _ in range(settings.layers.refiner)
        )
        xavier_matrices(self.layers)
        for layer in self.layers:
            if layer.enhance is not None and settings.enhance.zero_init:
                layer.enhance.silence()
        self.offset = Mlp(hidden, hidden, 2, 3)
        self.quality = nn.Linear(hidden, 1)
        # Zero offsets: initially every layer keeps its input span.
        nn.init.zeros_(self.offset[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.offset[-1].bias)  # type: ignore[arg-type]

    def forward(self, queries: JoinedQueries, seen: SeenVideo) -> RefinedQueries:
        """Refine the spans; they are detached between layers.

        Args:
            queries: contents and first spans in [0, 1].
            seen: the video.
        """
        content, spans, mutual = queries
        spans = spans.float()
        states, found = [], []
        for layer in self.layers:
            content = layer(content, spans, seen, mutual)
            state = content.float()
            with full_precision(state.device):
                moved = move_spans(spans, self.offset(state), self.update)
            states.append(state)
            found.append(moved)
            spans = moved.detach()
        with full_precision(spans.device):
            logits = self.quality(torch.stack(states)).squeeze(-1)
        return RefinedQueries(logits, torch.stack(found))


def move_spans(spans_cxw: Tensor, offset: Tensor, update: str) -> Tensor:
    """Spans (..., 2) plus offset in ``logit`` space, or added and clamped to [0, 1] (``raw``)."""
    if update == "raw":
        return (spans_cxw + offset).clamp(0.0, 1.0)
    return (offset + inverse_sigmoid(spans_cxw)).sigmoid()
