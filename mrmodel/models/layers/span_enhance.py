"""Span based enhance: a query reads the clips of its span as far as they fit the sentence.

SA-DETR, equations 2 and 3; sa_detr.md, section 2.10.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.models.layers.dropout import branch_dropout
from mrmodel.models.layers.full_precision import full_precision
from mrmodel.models.layers.heads import SaliencyHead
from mrmodel.models.layers.residual import add_projected
from mrmodel.models.layers.temporal_align import hat_weights, sample_points
from mrmodel.models.sa_detr_settings import SaDetrSettings


class SpanEnhance(nn.Module):
    """C <- LN(W_f((m + C) gate) + C), m the weighted mean of the clips at points of the span.

    Sampling is linear, so the rows of the points are never made: their scores are interpolated from
    scores of the clips, and their weighted mean is a weighted mean of the clips.
    """

    def __init__(self, settings: SaDetrSettings) -> None:
        super().__init__()
        hidden = settings.hidden
        self.align, self.settings = settings.align, settings.enhance
        self.relevance = SaliencyHead(hidden)
        self.fuse = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.branch = branch_dropout(settings.dropout, settings.drop)

    def silence(self) -> None:
        """Contents pass unchanged, up to the norm, until the branch has learned something."""
        nn.init.zeros_(self.fuse.weight)
        nn.init.zeros_(self.fuse.bias)

    def forward(
        self, content: Tensor, spans_cxw: Tensor, memory: Tensor, sentence: Tensor, clips: Tensor
    ) -> Tensor:
        """Enhance contents.

        Args:
            content: (B, P, d).
            spans_cxw: (B, P, 2).
            memory: clips (B, L, d).
            sentence: (B, d).
            clips: (B,) valid clips.

        Returns:
            (B, P, d).
        """
        with full_precision(content.device):  # the gate saturates in half precision
            summary = self.summary(spans_cxw, memory.float(), sentence.float(), clips)
            mixed = (summary + content.float()) * self.gate(content.float(), summary)
        return add_projected(mixed, content, self.fuse, self.branch, self.norm)

    def summary(self, spans_cxw: Tensor, memory: Tensor, sentence: Tensor, clips: Tensor) -> Tensor:
        """(B, P, d): the clips at the points of each span, weighed by what they score (eq. 2)."""
        points = sample_points(spans_cxw, clips, self.align.samples, self.align.expand)
        hat = hat_weights(points, memory.shape[1])
        # A row of the hat matrix sums to 1, so that the offset of the score comes through.
        scores = (hat @ self.relevance(memory, sentence)[:, None, :, None]).squeeze(-1)
        if self.settings.norm == "softmax":
            weights = scores.softmax(-1)
        else:
            weights = scores / self.align.samples
        of_clips = (weights.unsqueeze(2) @ hat).squeeze(2)
        summary: Tensor = of_clips @ memory
        return summary

    def gate(self, content: Tensor, summary: Tensor) -> Tensor:
        """(B, P, 1) or, for each channel, (B, P, d), in (0, 1) (eq. 3)."""
        products = content * summary
        if self.settings.gate == "scalar":
            products = products.sum(-1, keepdim=True)
        scale = content.shape[-1] ** -0.5 if self.settings.scaled else 1.0
        return torch.sigmoid(scale * products)
