"""BERT (Devlin et al. 2019) without padding: all texts of a batch have equal length.

Parameters are named as in Hugging Face's and the official code. Post-norm blocks, exact GELU.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.encoders.user_weights import Count, TransformerSizes

NORM_EPS = 1e-12


class BertSizes(TransformerSizes):
    """Sizes of the network; the defaults are those of BERT-large, except `layers`.

    InternVideo2 encodes texts with the first 19 of its 24 layers; the others cross-attend to video.
    """

    width: Count = 1024
    layers: Count = 19
    heads: Count = 16
    mlp: Count = 4096
    vocabulary: Count = 30522
    positions: Count = 512


class _Embeddings(nn.Module):
    """Sum of word, position and (single) token-type embeddings, normalised."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.width)
        self.token_type_embeddings = nn.Embedding(2, sizes.width)
        self.LayerNorm = nn.LayerNorm(sizes.width, eps=NORM_EPS)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, N) int64 -> (B, N, width)."""
        positions = self.position_embeddings.weight[: token_ids.shape[1]]
        states = self.word_embeddings(token_ids) + positions + self.token_type_embeddings.weight[0]
        normed: Tensor = self.LayerNorm(states)
        return normed


class _SelfAttention(nn.Module):
    """Attention without its output layer."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query = nn.Linear(sizes.width, sizes.width)
        self.key = nn.Linear(sizes.width, sizes.width)
        self.value = nn.Linear(sizes.width, sizes.width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        projected = (self.query(states), self.key(states), self.value(states))
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class _Output(nn.Module):
    """Linear layer, residual, LayerNorm."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, states: Tensor, before: Tensor) -> Tensor:
        """(B, N, inputs), (B, N, width) -> (B, N, width)."""
        normed: Tensor = self.LayerNorm(self.dense(states) + before)
        return normed


class _Attention(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.add_module("self", _SelfAttention(sizes))
        self.output = _Output(sizes.width, sizes.width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        mixed: Tensor = self.output(self.get_submodule("self")(states), states)
        return mixed


class _Intermediate(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(sizes.width, sizes.mlp)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, mlp)."""
        return F.gelu(self.dense(states))


class _Layer(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.attention = _Attention(sizes)
        self.intermediate = _Intermediate(sizes)
        self.output = _Output(sizes.mlp, sizes.width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        mixed = self.attention(states)
        out: Tensor = self.output(self.intermediate(mixed), mixed)
        return out


class _Encoder(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        for layer in self.layer:
            states = layer(states)
        return states


class Bert(nn.Module):
    """Token ids to the states of the last layer."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.embeddings = _Embeddings(sizes)
        self.encoder = _Encoder(sizes)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, N) int64 of texts of equal length, special tokens included -> (B, N, width)."""
        states: Tensor = self.encoder(self.embeddings(token_ids))
        return states
