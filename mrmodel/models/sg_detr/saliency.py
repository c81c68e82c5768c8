"""Clip scores of SG-DETR: local ones by similarity, global ones in context (eqs 1, 2, 7 to 9).

Follows the published code where it departs from the paper: docs/models/sg_detr.md, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers.attention import attend
from mrmodel.models.layers.dropout import Dropout
from mrmodel.models.layers.feed_forward import FeedForward, add_projected
from mrmodel.models.layers.functional import copies_of, full_precision, key_mask
from mrmodel.models.sg_detr.settings import SgDetrSettings

NORM_FLOOR = 1e-6
FIRST_LOG_SCALE = 3.0
FIRST_WEIGHTS = 0.02  # standard deviation, truncated at two of them


class PoolingLayer(nn.Module):
    """q <- q + attention(q, LN(tokens)), q <- q + FFN(LN(q)).

    The attention has no projections of query, key and value, only the one of its output.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        hidden, p = settings.hidden, settings.dropout
        self.heads, self.weights_p = settings.heads, p
        self.output = nn.Linear(hidden, hidden)
        self.branch = Dropout(0.0)
        self.ffn = FeedForward(hidden, settings.ffn, p, "prelu", 0.0)
        self.token_norm, self.ffn_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        for linear in (self.output, self.ffn.expand, self.ffn.contract):
            nn.init.trunc_normal_(linear.weight, std=FIRST_WEIGHTS)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, tokens: Tensor, allowed: Tensor | None) -> Tensor:
        """Vectors (B, 1, d), tokens (B, N, d) -> (B, 1, d)."""
        tokens = self.token_norm(tokens)
        p = self.weights_p if self.training else 0.0
        read = attend(query, tokens, tokens, self.heads, allowed, p)
        query = add_projected(read, query, self.output, self.branch, None)
        mixed: Tensor = self.ffn(self.ffn_norm(query), query, None)
        return mixed


class SentencePooling(nn.Module):
    """A learned query reads the tokens in several rounds (eq. 1); one LayerNorm between them."""

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(settings.hidden))
        self.layers = copies_of(PoolingLayer(settings), settings.pooling_layers)
        self.norm = nn.LayerNorm(settings.hidden) if settings.pooling_layers > 1 else None
        nn.init.trunc_normal_(self.query, std=FIRST_WEIGHTS)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, N, d), mask (B, N) -> (B, d)."""
        state = self.query.to(tokens.dtype).expand(len(tokens), 1, -1)
        allowed = key_mask(mask)
        for i, layer in enumerate(self.layers):
            if i and self.norm is not None:
                state = self.norm(state)
            state = layer(state, tokens, allowed)
        return state.squeeze(1)


class LocalSaliency(nn.Module):
    """S = exp(t) cosine(sentence, clip) + a with two learned scalars (eq. 2), in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(FIRST_LOG_SCALE))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, sentences: Tensor, clips: Tensor) -> Tensor:
        """Sentences (B, d), clips (B, L, d) -> (B, L)."""
        sentences = _unit(sentences.float()).unsqueeze(2)
        with full_precision(clips.device):
            cosine = (_unit(clips.float()) @ sentences).squeeze(2)
        scores: Tensor = self.log_scale.exp() * cosine + self.shift
        return scores


def _unit(rows: Tensor) -> Tensor:
    """(..., d) of length 1; a row of zeros stays one, and has no gradient.

    Zero clips that pad a video are rows of zeros before training, and dividing by their length
    would give a gradient of 1e12.
    """
    length = torch.linalg.vector_norm(rows.detach(), dim=-1, keepdim=True)
    return F.normalize(rows, dim=-1, eps=NORM_FLOOR).masked_fill(length < NORM_FLOOR, 0.0)


def amplify(clips: Tensor, saliency: Tensor) -> Tensor:
    """Saliency amplifier, X (1 + sigmoid(S)): (B, L, d), (B, L) -> (B, L, d) (eq. 7)."""
    return clips * (1.0 + saliency.sigmoid()).unsqueeze(-1).to(clips.dtype)


class GlobalSaliency(nn.Module):
    """Score of a clip in its context, and the clips that the detector reads (eqs 7 to 9).

    The head starts at zero: at first the global score is the local one. Switched off it stays so,
    and nothing is amplified.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        self.head = nn.Linear(settings.hidden, 1) if settings.global_saliency else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, clips: Tensor, local: Tensor) -> Tensor:
        """Clips (B, L, d), local scores (B, L) -> global scores (B, L)."""
        if self.head is None:
            return local
        # w^T X (1 + sigmoid(S)) is (1 + sigmoid(S)) w^T X, which amplifies numbers and not rows.
        gain = 1.0 + local.sigmoid()
        with full_precision(clips.device):
            change = F.linear(clips.float(), self.head.weight).squeeze(-1) * gain + self.head.bias
        return local + change

    def memory(self, clips: Tensor, scores: Tensor) -> Tensor:
        """Clips (B, L, d) amplified by their global scores (B, L)."""
        return clips if self.head is None else amplify(clips, scores)
