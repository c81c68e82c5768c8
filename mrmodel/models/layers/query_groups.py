"""Groups of decoder queries that share the decoder but are masked from each other.

Besides the moment queries, training has queries whose true window is known before decoding, such
as denoising queries (noisy copies of the true windows) in groups of one copy per kind and window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MOMENT = 0  # group number of the moment queries


@dataclass(slots=True)
class LabelledQueries:
    """Queries whose true window is known before decoding.

    Attributes:
        spans_cxw: (B, S, 2) reference spans in [0, 1], no gradient; (0.5, 0.5) in unused slots.
        window: (B, S) int64, index of the true window within its sample, 0 where there is none.
        positive: (B, S) bool, the target is the slot's window; other used slots are background.
        used: (B, S) bool; an unused slot is padding: masked and without loss.
    """

    spans_cxw: Tensor
    window: Tensor
    positive: Tensor
    used: Tensor


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """A group of decoder queries.

    Attributes:
        content: (B, S, d).
        spans_cxw: (B, S, 2).
        used: (B, S) bool.
        number: (S,) int64, see `group_mask`.
    """

    content: Tensor
    spans_cxw: Tensor
    used: Tensor
    number: Tensor


def moment_group(content: Tensor, spans_cxw: Tensor) -> QueryGroup:
    """The moment queries: contents (B, Q, d), references (B, Q, 2)."""
    used = torch.ones_like(spans_cxw[..., 0], dtype=torch.bool)
    number = torch.full((used.shape[1],), MOMENT, device=used.device)
    return QueryGroup(content, spans_cxw, used, number)


def known_group(queries: LabelledQueries, content: Tensor, number: Tensor) -> QueryGroup:
    """The group of labelled queries with contents (B, S, d); unused slots have zero content."""
    content = content * queries.used.unsqueeze(-1)
    return QueryGroup(content, queries.spans_cxw, queries.used, number)


class JoinedQueries(NamedTuple):
    """Contents (B, P, d), references (B, P, 2), and the self-attention mask as in `attend`."""

    content: Tensor
    spans_cxw: Tensor
    mutual: Tensor | None


def join_groups(groups: Sequence[QueryGroup], sees_match: bool = False) -> JoinedQueries:
    """Concatenate the groups in order; `sees_match` as in `group_mask`."""
    if len(groups) == 1:
        return JoinedQueries(groups[0].content, groups[0].spans_cxw, None)
    return JoinedQueries(
        torch.cat([group.content for group in groups], dim=1),
        torch.cat([group.spans_cxw for group in groups], dim=1),
        group_mask(
            torch.cat([group.number for group in groups]),
            torch.cat([group.used for group in groups], dim=1),
            sees_match,
        ),
    )


def group_mask(group: Tensor, used: Tensor, sees_match: bool) -> Tensor:
    """Self-attention mask between groups.

    Args:
        group: (P,) int64: 0 for moment queries, -1 for auxiliary ones, 1 .. for the denoising
            groups.
        used: (B, P) bool.
        sees_match: denoising queries also attend to the moment queries.

    Returns:
        (B, 1, P, P) bool. Queries attend to their own group; an unused slot is attended to by
        itself only.
    """
    row, column = group[:, None], group[None, :]
    allowed = row == column
    if sees_match:
        allowed = allowed | ((row > MOMENT) & (column == MOMENT))
    itself = torch.eye(len(group), dtype=torch.bool, device=group.device)
    return ((allowed & used[:, None, :]) | itself).unsqueeze(1)


def seeded_generator() -> torch.Generator:
    """A generator on the CPU, seeded from torch's global one."""
    return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
