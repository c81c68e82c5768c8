"""Multi-head attention over batch-first sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers.dropout import dropout


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, allowed: Tensor | None, p: float = 0.0
) -> Tensor:
    """Scaled dot-product attention, softmax over the keys of each head.

    Args:
        query: (B, S, E), already projected.
        key: (B, T, E).
        value: (B, T, V).
        heads: divides E and V.
        allowed: bool, broadcastable to (B, heads, S, T), True = may be read; None = everything.
            Each query must be allowed at least one key.
        p: dropout probability of the attention weights.

    Returns:
        (B, S, V).
    """
    query, key, value = (_split(tensor, heads) for tensor in (query, key, value))
    if p == 0.0 or query.device.type != "cpu":
        mixed = F.scaled_dot_product_attention(query, key, value, allowed, dropout_p=p)
    else:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        mixed = dropout(scores.softmax(-1), p).to(value.dtype) @ value
    return mixed.transpose(1, 2).flatten(2)


class MultiheadAttention(nn.Module):
    """Attention with packed input projections: rows of `in_proj_weight` are query, key, value."""

    def __init__(self, hidden: int, heads: int, p: float) -> None:
        super().__init__()
        self.hidden, self.heads, self.p = hidden, heads, p
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        """(B, S, d), (B, T, d), (B, T, d) and `allowed` as in `attend` -> (B, S, d)."""
        if query is key:
            queries, keys = self._project(query, 0, 2).chunk(2, dim=-1)
        else:
            queries, keys = self.project_query(query), self.project_key(key)
        return self.read(queries, keys, self.project_value(value), allowed)

    def read(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None) -> Tensor:
        """Attention and output projection of sequences that are projected already."""
        p = self.p if self.training else 0.0
        output: Tensor = self.out_proj(attend(queries, keys, values, self.heads, allowed, p))
        return output

    def project_query(self, query: Tensor) -> Tensor:
        """(B, S, d) -> (B, S, d)."""
        return self._project(query, 0, 1)

    def project_key(self, key: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        return self._project(key, 1, 2)

    def project_value(self, value: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        return self._project(value, 2, 3)

    def _project(self, sequence: Tensor, first: int, last: int) -> Tensor:
        rows = slice(first * self.hidden, last * self.hidden)
        return F.linear(sequence, self.in_proj_weight[rows], self.in_proj_bias[rows])


def _split(sequence: Tensor, heads: int) -> Tensor:
    return sequence.view(*sequence.shape[:2], heads, -1).transpose(1, 2)
