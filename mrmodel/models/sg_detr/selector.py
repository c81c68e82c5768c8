"""Queries that start where the clips suggest: DINO's mixed selection on a line (section 4.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mrmodel.models.layers.feed_forward import Mlp
from mrmodel.models.layers.functional import full_precision
from mrmodel.models.sg_detr.output import Heads
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.spans import inverse_sigmoid

FIRST_WIDTH = 0.1


class Start(NamedTuple):
    """What the decoder's moment queries start from.

    `content` (B, Q, d) and `spans_cxw` (B, Q, 2); with a selector also its own predictions (one
    layer of heads) and which slots hold a clip (B, Q).
    """

    content: Tensor
    spans_cxw: Tensor
    heads: Heads | None = None
    used: Tensor | None = None


class LearnedQueries(nn.Module):
    """References and contents that do not depend on the video (DAB-DETR)."""

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.randn(settings.queries, settings.hidden))
        self.spans = nn.Parameter(torch.randn(settings.queries, 2))

    def forward(self, memory: Tensor, mask: Tensor) -> Start:
        """Clips (B, L, d) and their mask -> the same start for every sample."""
        size = len(memory)
        spans = self.spans.float().sigmoid().expand(size, -1, -1)
        return Start(self.content.expand(size, -1, -1), spans)


class QuerySelector(nn.Module):
    """The best clips become references; their contents are learned and belong to the rank.

    A slot beyond a sample's clips has a learned reference. Ranks, and so a sample's queries, do not
    depend on its padding.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        hidden, self.queries = settings.hidden, settings.queries
        self.takes_tokens = settings.qs.content == "token"
        self.memory = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.class_head = nn.Linear(hidden, 1)
        self.span_head = Mlp(hidden, hidden, 2, 3)
        nn.init.zeros_(self.span_head[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.span_head[-1].bias)  # type: ignore[arg-type]
        width = FIRST_WIDTH if settings.qs.width == "learned" else settings.qs.width
        logit = inverse_sigmoid(torch.tensor(width))
        self.width = nn.Parameter(logit, requires_grad=settings.qs.width == "learned")
        self.content = nn.Parameter(torch.randn(self.queries, hidden))
        self.fallback = nn.Parameter(torch.randn(self.queries, 2))

    def forward(self, memory: Tensor, mask: Tensor) -> Start:
        """Clips (B, L, d) and their mask (B, L) -> Q queries, best clip first.

        The references carry no gradient to the selector; fallback references learn.
        """
        rows = self.norm(self.memory(memory))
        logits = self.class_head(rows).squeeze(-1).float()
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        ranked, clip = logits.topk(min(self.queries, logits.shape[1]), dim=1)
        counts = mask.sum(1, keepdim=True)
        used = torch.arange(self.queries, device=mask.device) < counts
        missing = self.queries - ranked.shape[1]
        if missing:
            # The empty slots repeat the first clip; nothing of them is read.
            ranked = torch.cat((ranked, ranked[:, :1].expand(-1, missing)), 1)
            clip = torch.cat((clip, clip[:, :1].expand(-1, missing)), 1)
        rows = rows.gather(1, clip.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
        spans = self._spans(rows, clip, counts)
        spans_start = torch.where(
            used.unsqueeze(-1), spans.detach(), self.fallback.float().sigmoid()
        )
        content = self.content.expand(len(memory), -1, -1)
        if self.takes_tokens:
            content = torch.where(used.unsqueeze(-1), rows.detach().to(content.dtype), content)
        heads = Heads(ranked.unsqueeze(0), spans.unsqueeze(0), None)
        return Start(content, spans_start, heads, used)

    def _spans(self, rows: Tensor, clip: Tensor, counts: Tensor) -> Tensor:
        """Proposals around the middles of the clips, moved by the span head: (B, Q, 2)."""
        centre = inverse_sigmoid((clip + 0.5) / counts)
        proposals = torch.stack((centre, self.width.expand_as(centre)), dim=-1)
        with full_precision(rows.device):
            spans: Tensor = (self.span_head(rows.float()) + proposals).sigmoid()
        return spans
