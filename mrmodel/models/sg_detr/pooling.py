"""The sentence vector: attention pooling over tokens (SG-DETR eq. 1; section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mrmodel.models.layers.attention import Inputs, MultiheadAttention
from mrmodel.models.layers.feed_forward import FeedForward
from mrmodel.models.layers.functional import Stack, key_mask
from mrmodel.models.layers.pooling import masked_mean
from mrmodel.models.sg_detr.settings import SgDetrSettings

FFN_RATIO = 4


class PoolingLayer(nn.Module):
    """One round: the vector reads the tokens, then walks through a feed-forward block.

    Both branches end in weights of zero, so that at first the vector is what it started from.
    """

    def __init__(self, width: int, settings: SgDetrSettings) -> None:
        super().__init__()
        p, drop = settings.dropout, settings.drop
        # The width is the text encoder's, which need not be a multiple of our heads.
        self.attention = MultiheadAttention(width, math.gcd(width, settings.heads), p, drop)
        self.query_norm, self.token_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        nn.init.zeros_(self.attention.out_proj.weight)
        self.ffn, self.ffn_norm = None, None
        if settings.pool.ffn:
            self.ffn = FeedForward(width, FFN_RATIO * width, p, "prelu", drop)
            self.ffn_norm = nn.LayerNorm(width)
            nn.init.zeros_(self.ffn.contract.weight)
            nn.init.zeros_(self.ffn.contract.bias)

    def forward(self, query: Tensor, tokens: Tensor, allowed: Tensor | None) -> Tensor:
        """Vector (B, 1, D), tokens (B, N, D) -> (B, 1, D)."""
        tokens = self.token_norm(tokens)
        inputs = Inputs(self.query_norm(query), tokens, tokens)
        query = self.attention(inputs, allowed, query, None)
        if self.ffn is None or self.ffn_norm is None:
            return query
        mixed: Tensor = self.ffn(self.ffn_norm(query), query, None)
        return mixed


class PoolingEncoder(nn.Module):
    """Tokens to one vector of the same width: the mean token (or another start), refined."""

    def __init__(self, width: int, settings: SgDetrSettings) -> None:
        super().__init__()
        pool = self.settings = settings.pool
        self.start = nn.Parameter(torch.randn(width) * 0.02) if pool.query == "learned" else None
        self.layers: Stack[PoolingLayer] = Stack(
            PoolingLayer(width, settings) for _ in range(pool.layers)
        )
        # In raw space the vector has to stay where clips and tokens meet.
        raw = settings.local.space == "raw"
        self.norm = nn.Identity() if raw else nn.LayerNorm(width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, N, D), mask (B, N) -> (B, D)."""
        mean = masked_mean(tokens, mask)
        if self.start is not None:
            query = self.start.expand_as(mean).to(mean.dtype)
        else:
            query = mean if self.settings.query == "mean" else tokens[:, 0]
        query, allowed = query.unsqueeze(1), key_mask(mask)
        for layer in self.layers:
            query = layer(query, tokens, allowed)
        pooled = query.squeeze(1)
        if self.settings.residual_mean:
            pooled = pooled + mean
        sentence: Tensor = self.norm(pooled)
        return sentence
