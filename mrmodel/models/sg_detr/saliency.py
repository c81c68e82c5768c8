"""Clip scores of SG-DETR: local ones by similarity, global ones after context (eqs 2, 7-9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers.functional import full_precision
from mrmodel.models.sg_detr.settings import SgDetrSettings

NORM_FLOOR = 1e-6


def pairwise_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of rows, (B, L, D), (B, N, D) -> (B, L, N), in float32; 0 with a row of zeros."""
    first, second = first.float(), second.float()
    with full_precision(first.device):
        products = first @ second.transpose(1, 2)
    return products / (_length(first) * _length(second).transpose(1, 2))


def _length(rows: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, 1)."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return length.clamp(min=NORM_FLOOR)


class ScaledCosine(nn.Module):
    """alpha * cosine + beta with two learned scalars, kept in float32 (eq. 2)."""

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.beta = nn.Parameter(torch.tensor(beta))

    def forward(self, similarity: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return self.alpha * similarity + self.beta


class LocalSaliency(nn.Module):
    """Score of a clip by its own likeness to the sentence (section 3.3)."""

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        self.scale = ScaledCosine(settings.local.alpha, settings.local.beta)

    def forward(self, sentences: Tensor, clips: Tensor, mask: Tensor) -> Tensor:
        """Sentences (k B, D), clips (B, L, D), mask (B, L) -> (k B, L), 0 at padding."""
        of_sample = sentences.view(-1, *clips[:, 0].shape).transpose(0, 1)
        similarity = pairwise_cosine(clips, of_sample).permute(2, 0, 1)
        scores: Tensor = self.scale(similarity)
        return scores.masked_fill(~mask, 0.0).flatten(0, 1)


def amplify(clips: Tensor, saliency: Tensor) -> Tensor:
    """Saliency amplifier, X (1 + sigmoid(S)): (B, L, d), (B, L) -> (B, L, d) (eq. 7)."""
    return clips * (1.0 + saliency.sigmoid()).unsqueeze(-1).to(clips.dtype)


class GlobalSaliency(nn.Module):
    """Score of a clip in its context, and the clips that the detector reads (section 3.6).

    The head starts at zero: at first the global score is the local one. Switched off it stays so.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        self.settings = settings.gsm
        self.head = nn.Linear(settings.hidden, 1) if settings.gsm.enabled else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, clips: Tensor, local: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Clips (B, L, d), local scores (B, L) -> scores (B, L), 0 at padding, and (B, L, d)."""
        if self.head is None:
            return local, clips
        # w^T X (1 + sigmoid(S)) is (1 + sigmoid(S)) w^T X, which amplifies numbers and not rows.
        gain = 1.0 + local.sigmoid()
        with full_precision(clips.device):
            change = F.linear(clips.float(), self.head.weight).squeeze(-1) * gain + self.head.bias
        scores = (local + change).masked_fill(~mask, 0.0)
        gate = scores.detach() if self.settings.detach_in_mr else scores
        return scores, amplify(clips, gate)
