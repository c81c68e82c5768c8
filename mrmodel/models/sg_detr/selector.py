"""Start of the moment queries: the best positions of the pyramid, or learned references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mrmodel.models.layers.feed_forward import Mlp, xavier_chain
from mrmodel.models.layers.functional import full_precision
from mrmodel.models.sg_detr.anchor_head import prior_logit
from mrmodel.models.sg_detr.anchors import AnchorGrid, level_masks
from mrmodel.models.sg_detr.conv import FIRST_WEIGHTS
from mrmodel.models.sg_detr.output import Heads
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.spans import inverse_sigmoid

INSIDE = (0.0125, 0.9875)  # centre and width of a proposal lie strictly between them


class Start(NamedTuple):
    """What the decoder's moment queries start from.

    `content` (B, Q, d) and `spans_cxw` (B, Q, 2), without gradient to the selector; `heads` are the
    selector's own predictions, one layer.
    """

    content: Tensor
    spans_cxw: Tensor
    heads: Heads | None = None


class LearnedQueries(nn.Module):
    """References and contents that do not depend on the video (DAB-DETR)."""

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.randn(settings.queries, settings.hidden) * FIRST_WEIGHTS)
        self.centre = nn.Parameter(torch.randn(settings.queries, 1))
        self.width = nn.Parameter(torch.randn(settings.queries, 1))

    def forward(self, levels: Sequence[Tensor], mask: Tensor, grid: AnchorGrid) -> Start:
        """The same start for every sample of the mask (B, L)."""
        size = len(mask)
        spans = torch.cat((self.centre, self.width), dim=1).float().sigmoid().expand(size, -1, -1)
        return Start(self.content.expand(size, -1, -1), spans)


class QuerySelector(nn.Module):
    """Class, IoU and span of a proposal at every position; the Q best become references.

    Their rows become contents. A video with fewer usable positions than Q fills up with one
    constant content at the reference (1, 1).
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        hidden, self.queries = settings.hidden, settings.queries
        self.output = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.class_head = nn.Linear(hidden, 1)
        self.iou_head = nn.Linear(hidden, 1)
        self.span_head = Mlp(hidden, hidden, 2, 3)
        xavier_chain(self.span_head)
        nn.init.zeros_(self.span_head[-1].weight)  # type: ignore[arg-type]
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        biases = (prior_logit(settings.prior), 2.0 * prior_logit(settings.prior))
        for head, bias in zip((self.class_head, self.iou_head), biases, strict=True):
            nn.init.normal_(head.weight, std=FIRST_WEIGHTS)
            nn.init.constant_(head.bias, bias)

    def forward(self, levels: Sequence[Tensor], mask: Tensor, grid: AnchorGrid) -> Start:
        """Levels (B, l_i, d) of the clips with the mask (B, L) -> Q queries, best first."""
        proposals, usable = self._proposals(mask, grid)
        rows = self.norm(self.output(torch.cat(list(levels), dim=1)))
        with torch.no_grad(), full_precision(rows.device):
            ranks = logsigmoid(self.class_head(rows.float())) + logsigmoid(
                self.iou_head(rows.float())
            )
        ranks = ranks.squeeze(-1).masked_fill(~usable, -torch.inf)
        best = ranks.topk(min(self.queries, ranks.shape[1]), dim=1)[1]
        index = best.unsqueeze(2)
        chosen = rows.gather(1, index.expand(-1, -1, rows.shape[2]))
        starts, used = proposals.gather(1, index.expand(-1, -1, 2)), usable.gather(1, best)
        missing = self.queries - best.shape[1]
        if missing > 0:
            chosen, starts = (F.pad(part, (0, 0, 0, missing)) for part in (chosen, starts))
            used = F.pad(used, (0, missing))
        # An unusable position counts as one of zeros, as published.
        chosen = torch.where(used.unsqueeze(2), chosen, self.norm(self.output.bias))
        with full_precision(rows.device):
            states = chosen.float()
            logits, iou_logits = self.class_head(states), self.iou_head(states)
            spans = (self.span_head(states) + inverse_sigmoid(starts)).sigmoid()
        spans = torch.where(used.unsqueeze(2), spans, 1.0)
        heads = Heads(logits.squeeze(-1)[None], spans[None], iou_logits.squeeze(-1)[None])
        return Start(chosen.detach(), spans.detach(), heads)

    def _proposals(self, mask: Tensor, grid: AnchorGrid) -> tuple[Tensor, Tensor]:
        """(B, A, 2) spans around the positions, and (B, A) bool, which of them may be chosen."""
        centre = grid.centre / mask.sum(1, keepdim=True)
        low, high = INSIDE
        usable = torch.cat(level_masks(mask), dim=1)
        usable = usable & (centre > low) & (centre < high)
        return torch.stack((centre, grid.proposal_width.expand_as(centre)), dim=-1), usable
