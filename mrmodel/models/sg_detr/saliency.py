"""Clip scores of SG-DETR: local ones by similarity, global ones after context (eqs 2, 7-9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.models.sg_detr.settings import SgDetrSettings

NORM_FLOOR = 1e-6


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of rows along the last axis, broadcast, in float32; 0 with a row of zeros."""
    first, second = first.float(), second.float()
    return (_unit(first) * _unit(second)).sum(-1)


def pairwise_cosine(first: Tensor, second: Tensor) -> Tensor:
    """(B, L, D), (B, N, D) -> (B, L, N) in float32."""
    return _unit(first.float()) @ _unit(second.float()).transpose(1, 2)


def _unit(rows: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    unit: Tensor = rows / length.clamp(min=NORM_FLOOR)
    return unit


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

    def forward(self, sentence: Tensor, clips: Tensor, mask: Tensor) -> Tensor:
        """Sentences (B, D), clips (B, L, D), mask (B, L) -> (B, L), 0 at padding."""
        scores: Tensor = self.scale(cosine(sentence.unsqueeze(1), clips))
        return scores.masked_fill(~mask, 0.0)


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
        change = self.head(amplify(clips, local)).squeeze(-1).float()
        scores = (local + change).masked_fill(~mask, 0.0)
        gate = scores.detach() if self.settings.detach_in_mr else scores
        return scores, amplify(clips, gate)
