"""Heads that the DETR-style models share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.types import LayerOutput

FOREGROUND, BACKGROUND = 0, 1  # class indices of the published checkpoints


class ContrastiveHead(nn.Module):
    """Unit vectors of queries and tokens in one space (Moment-DETR's optional alignment loss)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, width)
        self.text = nn.Linear(hidden, width)

    def project_query(self, states: Tensor) -> Tensor:
        """(..., d) -> (..., width), rows of length 1."""
        return F.normalize(self.query(states), dim=-1)

    def sum_text(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, d) -> (B, width): the sum of the unit vectors of all (or the valid) tokens."""
        vectors = F.normalize(self.text(tokens), dim=-1)
        if mask is not None:
            vectors = vectors * mask.unsqueeze(-1)
        return vectors.sum(1)


def foreground_scores(layer: LayerOutput) -> Tensor:
    """(B, Q) probability of each query to be a moment."""
    return layer.logits.float().softmax(-1)[..., FOREGROUND]


class SaliencyHead(nn.Module):
    """Scaled product of each clip with the saliency token (QD-DETR; baselines.md 4.1)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.clip, self.token = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, clips: Tensor, token: Tensor) -> Tensor:
        """Clips (B, L, d), token (B, d) -> (B, L).

        <W c + b, u> is computed as <c, W^T u> + <b, u>: the same number without a matrix product
        over all clips.
        """
        direction = self.token(token) * token.shape[-1] ** -0.5
        offset = direction @ self.clip.bias
        products = clips @ (direction @ self.clip.weight).unsqueeze(-1)
        scores: Tensor = products.squeeze(-1) + offset.unsqueeze(-1)
        return scores
