"""Groups of decoder queries that walk through the decoder together and do not see each other.

Beside the queries that answer, training has queries whose true window is known before decoding:
noisy copies of the true windows among them, in groups of one copy of each kind for each window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mrmodel.losses.windows import PaddedWindows
from mrmodel.spans import xx_to_cxw

NARROWEST_CLIPS = 0.5  # of a noisy copy
MOMENT = 0  # group number of the queries that answer


@dataclass(slots=True)
class LabelledQueries:
    """Queries whose true window is known before decoding.

    Attributes:
        spans_cxw: (B, S, 2) reference spans in [0, 1], no gradient; (0.5, 0.5) in unused slots.
        window: (B, S) int64, index of the true window within its sample, 0 where there is none.
        positive: (B, S) bool, the slot must find its window; other used slots are background.
        used: (B, S) bool; an unused slot is neither read nor judged.
    """

    spans_cxw: Tensor
    window: Tensor
    positive: Tensor
    used: Tensor


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """Some of the decoder's queries.

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
    """The queries that answer: contents (B, Q, d), references (B, Q, 2)."""
    used = torch.ones_like(spans_cxw[..., 0], dtype=torch.bool)
    number = torch.full((used.shape[1],), MOMENT, device=used.device)
    return QueryGroup(content, spans_cxw, used, number)


def known_group(queries: LabelledQueries, content: Tensor, number: Tensor) -> QueryGroup:
    """Known queries with their contents (B, S, d); unused slots have no content."""
    content = content * queries.used.unsqueeze(-1)
    return QueryGroup(content, queries.spans_cxw, queries.used, number)


class JoinedQueries(NamedTuple):
    """Contents (B, P, d), references (B, P, 2), and who reads whom as in `attend`."""

    content: Tensor
    spans_cxw: Tensor
    mutual: Tensor | None


def join_groups(groups: Sequence[QueryGroup], sees_match: bool) -> JoinedQueries:
    """All groups as one, in their order; `sees_match` as in `group_mask`."""
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
    """Which query may read which (sg_detr.md, section 4.5).

    Args:
        group: (P,) int64: 0 for moment queries, -1 for auxiliary ones, 1 .. for the denoising
            groups.
        used: (B, P) bool.
        sees_match: denoising queries read the moment queries too.

    Returns:
        (B, 1, P, P) bool. Queries read their own group; nobody reads an unused slot, but that
        slot itself.
    """
    row, column = group[:, None], group[None, :]
    allowed = row == column
    if sees_match:
        allowed = allowed | ((row > MOMENT) & (column == MOMENT))
    itself = torch.eye(len(group), dtype=torch.bool, device=group.device)
    return ((allowed & used[:, None, :]) | itself).unsqueeze(1)


class Noise(NamedTuple):
    """Draws of noisy copies, (Gmax, B, groups, kinds, 2) each: size in [0, 1), sign +-1."""

    size: Tensor
    sign: Tensor

    def by_group(self, device: torch.device) -> Noise:
        """The same draws on `device` as (B, groups, kinds, Gmax, 2)."""
        size, sign = (part.to(device, non_blocking=True).permute(1, 2, 3, 0, 4) for part in self)
        return Noise(size, sign)


def draw_noise(shape: tuple[int, int, int], longest: int, generator: torch.Generator) -> Noise:
    """Fresh draws on the CPU, so that a step can be repeated on any device.

    The window is the slowest axis: a fuller sample in the batch adds draws behind the others and
    changes none of them.

    Args:
        shape: samples, groups and kinds of copies.
        longest: windows of the fullest sample.
        generator: where the numbers come from.
    """
    draws = torch.rand((longest, *shape, 2, 2), generator=generator)
    return Noise(draws[..., 0], torch.where(draws[..., 1] < 0.5, -1.0, 1.0))


def seeded_generator() -> torch.Generator:
    """A generator on the CPU, seeded from torch's global one."""
    return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))


def noisy_copies(ends_xx: Tensor, windows: PaddedWindows, clips: Tensor) -> LabelledQueries:
    """Queries from moved windows; kind 0 must find its window.

    Args:
        ends_xx: (B, groups, kinds, Gmax, 2) moved starts and ends. They are held in the video and
            sorted, as large noise exchanges them.
        windows: the truth, Gmax > 0.
        clips: (B,) valid clips; a reference is at least half a clip wide.

    Returns:
        Queries with S = groups x kinds x Gmax slots: group by group, positives before negatives.
    """
    device = ends_xx.device
    groups, kinds, longest = ends_xx.shape[1:4]
    spans = xx_to_cxw(ends_xx.clamp(0.0, 1.0).sort(-1).values).flatten(1, 3)
    centre, width = spans.unbind(-1)
    width = width.maximum(NARROWEST_CLIPS / clips[:, None])
    used = windows.valid[:, None, None].expand(-1, groups, kinds, -1).flatten(1)
    index = torch.arange(longest, device=device).repeat(groups * kinds)
    kind = torch.arange(kinds, device=device).repeat_interleave(longest).repeat(groups)
    # Away from the ends of the video, so that both ends of the reference stay inside.
    centre = centre.clamp(0.5 * width, 1.0 - 0.5 * width)
    spans = torch.stack((centre, width), -1)
    return LabelledQueries(
        spans_cxw=torch.where(used.unsqueeze(-1), spans, 0.5),
        window=index * used,
        positive=used & (kind == 0),
        used=used,
    )


def group_numbers(groups: int, slots: int, device: torch.device) -> Tensor:
    """(groups x slots,) int64: 1 for the slots of the first group, and so on."""
    return torch.arange(1, groups + 1, device=device).repeat_interleave(slots)
