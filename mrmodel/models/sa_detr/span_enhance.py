"""Span-based enhancement: a query pools the clips of its span, weighted by text relevance.

SA-DETR, equations 2 and 3. The clips of a span are read at evenly spaced points, as in G-TAD (Xu
et al. 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.models.layers.dropout import branch_dropout
from mrmodel.models.layers.feed_forward import add_projected
from mrmodel.models.layers.functional import full_precision
from mrmodel.models.layers.heads import SaliencyHead
from mrmodel.models.sa_detr.settings import SaDetrSettings
from mrmodel.spans import cxw_to_xx


def sample_points(spans_cxw: Tensor, clips: Tensor, samples: int, expand: float = 0.0) -> Tensor:
    """Sample points of spans, in units of clips; the middle of clip i is at i.

    Point j is at the fraction (j + 1/2) / samples of the span, clamped to the middles of the
    sample's first and last clip.

    Args:
        spans_cxw: (B, P, 2).
        clips: (B,) valid clips.
        samples: points per span.
        expand: fraction of its width by which a span is first widened at each end.

    Returns:
        (B, P, samples) float32.
    """
    centre, width = spans_cxw.float().unbind(-1)
    start, end = cxw_to_xx(torch.stack((centre, (1.0 + 2.0 * expand) * width), -1)).unbind(-1)
    fraction = (torch.arange(samples, device=spans_cxw.device) + 0.5) / samples
    points = start.unsqueeze(-1) + fraction * (end - start).unsqueeze(-1)
    clips = clips.float()[:, None, None]
    return (points * clips - 0.5).clamp(min=0.0).minimum(clips - 1.0)


def hat_weights(points: Tensor, length: int) -> Tensor:
    """Linear interpolation as a matrix: row j weights the two clips around point j.

    Args:
        points: (B, P, S) in units of clips, inside the valid clips.
        length: clips L, padding included.

    Returns:
        (B, P, S, L) float32, rows sum to 1; padding has weight 0.
    """
    middles = torch.arange(length, device=points.device, dtype=torch.float32)
    return (1.0 - (points.unsqueeze(-1) - middles).abs()).relu()


class SpanEnhance(nn.Module):
    """C <- LN(W_f((m + C) gate) + C), m the weighted mean of the clips at points of the span.

    Sampling is linear, so sampled features are never materialised: their scores are interpolated
    from the clips' scores, and their weighted mean is a weighted mean of the clips.
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
        """Initialise the branch to zero, so that contents first pass unchanged up to the norm."""
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
        """(B, P, d): the clips at the points of each span, weighted by their scores (eq. 2)."""
        points = sample_points(spans_cxw, clips, self.align.samples, self.align.expand)
        hat = hat_weights(points, memory.shape[1])
        # Rows of the hat matrix sum to 1, so the bias of the score is preserved.
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
