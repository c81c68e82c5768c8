"""Multi-head attention over batch-first sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers import cpu_kernels
from mrmodel.models.layers.dropout import Drop, branch_dropout, dropout
from mrmodel.models.layers.feed_forward import add_projected


class Inputs(NamedTuple):
    """Query, key and value: (B, S, d), (B, T, d), (B, T, d)."""

    query: Tensor
    key: Tensor
    value: Tensor


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
    if cpu_kernels.usable(query, training=p > 0.0):
        return cpu_kernels.attend(query, key, value, heads, allowed, p)
    # PyTorch has a fast kernel for a CPU only where keys and values are of one width. For the
    # decoder's 25 queries about 75 clips this takes 0.12 ms a sample, PyTorch 0.31 in a batch.
    if key.shape[2] != value.shape[2] and cpu_kernels.usable_for_inference(query, p > 0.0):
        return cpu_kernels.attend_at_rest(query, key, value, heads, allowed)
    query, key, value = (_split(tensor, heads) for tensor in (query, key, value))
    if p == 0.0 or query.device.type != "cpu":
        mixed = F.scaled_dot_product_attention(query, key, value, allowed, dropout_p=p)
    else:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        mixed = dropout(scores.softmax(-1), p).to(value.dtype) @ value
    return mixed.transpose(1, 2).flatten(2)


def attend_by(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    weigh: Callable[[Tensor], Tensor],
    p: float = 0.0,
) -> Tensor:
    """`attend` with attention weights computed by the caller.

    Args:
        query: as in `attend`, like all arguments but `weigh`.
        key: (B, T, d).
        value: (B, T, V).
        heads: divides d and V.
        weigh: maps scaled scores to attention weights, both (B, heads, S, T) float32; it also
            applies masks.
        p: dropout of the weights.

    Returns:
        (B, S, V).
    """
    query, key, value = (_split(tensor, heads) for tensor in (query, key, value))
    scores = ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).float()
    mixed = dropout(weigh(scores), p).to(value.dtype) @ value
    return mixed.transpose(1, 2).flatten(2)


def interleave_heads(content: Tensor, position: Tensor, heads: int) -> Tensor:
    """Concatenate content and position within each head.

    Args:
        content: (B, S, d).
        position: (B or 1, S, d).
        heads: divides d.

    Returns:
        (B, S, 2 d).
    """
    size, length, hidden = content.shape
    split = (size, length, heads, hidden // heads)
    position = position.expand_as(content)
    halves = torch.cat((content.view(split), position.view(split)), dim=-1)
    return halves.view(size, length, 2 * hidden)


class MultiheadAttention(nn.Module):
    """Attention with packed input projections: rows of `in_proj_weight` are query, key, value."""

    def __init__(self, hidden: int, heads: int, p: float, drop: Drop = "unit") -> None:
        super().__init__()
        self.hidden, self.heads = hidden, heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)
        self.branch, self.weights_p = branch_dropout(p, drop), p
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, inputs: Inputs, allowed: Tensor | None, residual: Tensor, norm: nn.LayerNorm | None
    ) -> Tensor:
        """norm(residual + dropout(attention)); just the sum if `norm` is None.

        Args:
            inputs: query (B, S, d), key (B, T, d) and value (B, T, d) before their projections.
            allowed: as in `attend`.
            residual: (B, S, d).
            norm: of the sum.

        Returns:
            (B, S, d).
        """
        query, key, value = inputs
        if query is key:
            both, values = self._project_apart((query, value), (2, 1))
            queries, keys = both.chunk(2, dim=-1)
        else:
            queries, keys, values = self._project_apart(inputs, (1, 1, 1))
        return self.read(Inputs(queries, keys, values), allowed, residual, norm)

    def read(
        self, projected: Inputs, allowed: Tensor | None, residual: Tensor, norm: nn.LayerNorm | None
    ) -> Tensor:
        """As `forward`, with inputs that are already projected."""
        mixed = attend(*projected, self.heads, allowed, self.p)
        return add_projected(mixed, residual, self.out_proj, self.branch, norm)

    @property
    def p(self) -> float:
        """Dropout probability of the attention weights."""
        return self.weights_p if self.training else 0.0

    def project_query(self, query: Tensor) -> Tensor:
        """(B, S, d) -> (B, S, d)."""
        return self._project(query, 0, 1)

    def project_key(self, key: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        return self._project(key, 1, 2)

    def project_value(self, value: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        return self._project(value, 2, 3)

    def project_key_and_value(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, d) -> keys and values (B, T, d) of the same rows, in one product."""
        keys, values = self._project(sequence, 1, 3).chunk(2, dim=-1)
        return keys, values

    def project_all(self, sequence: Tensor) -> Inputs:
        """(B, S, d) -> queries, keys and values (B, S, d) of the same rows, in one product."""
        return Inputs(*self._project(sequence, 0, 3).chunk(3, dim=-1))

    def _project_apart(self, sequences: Sequence[Tensor], parts: Sequence[int]) -> list[Tensor]:
        """Project each sequence with its number of consecutive parts of the packed weights."""
        rows = [part * self.hidden for part in parts]
        weights, biases = (torch.split(t, rows) for t in (self.in_proj_weight, self.in_proj_bias))
        return [F.linear(*inputs) for inputs in zip(sequences, weights, biases, strict=True)]

    def _project(self, sequence: Tensor, first: int, last: int) -> Tensor:
        rows = slice(first * self.hidden, last * self.hidden)
        return F.linear(sequence, self.in_proj_weight[rows], self.in_proj_bias[rows])


def _split(sequence: Tensor, heads: int) -> Tensor:
    return sequence.view(*sequence.shape[:2], heads, -1).transpose(1, 2)
