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

from mrmodel.losses.windows import PaddedWindows
from mrmodel.spans import xx_to_cxw

NARROWEST_CLIPS = 0.5  # of a noisy copy
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


def join_groups(groups: Sequence[QueryGroup], sees_match: bool) -> JoinedQueries:
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
    """Self-attention mask between groups (docs/models/sg_detr.md, section 4.5).

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


class Noise(NamedTuple):
    """Random numbers of noisy copies, (Gmax, B, groups, kinds, 2): size in [0, 1), sign +-1."""

    size: Tensor
    sign: Tensor

    def by_group(self, device: torch.device) -> Noise:
        """The same draws on `device` as (B, groups, kinds, Gmax, 2)."""
        size, sign = (part.to(device, non_blocking=True).permute(1, 2, 3, 0, 4) for part in self)
        return Noise(size, sign)


def draw_noise(shape: tuple[int, int, int], longest: int, generator: torch.Generator) -> Noise:
    """Draw on the CPU, so that a step is reproducible on any device.

    The window is the slowest axis: a sample with more windows in the batch appends draws and
    changes no others.

    Args:
        shape: samples, groups and kinds of copies.
        longest: largest number of windows of a sample.
        generator: the random generator.
    """
    draws = torch.rand((longest, *shape, 2, 2), generator=generator)
    return Noise(draws[..., 0], torch.where(draws[..., 1] < 0.5, -1.0, 1.0))


def seeded_generator() -> torch.Generator:
    """A generator on the CPU, seeded from torch's global one."""
    return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))


def noisy_copies(ends_xx: Tensor, windows: PaddedWindows, clips: Tensor) -> LabelledQueries:
    """Queries from perturbed windows; the target of kind 0 is its window.

    Args:
        ends_xx: (B, groups, kinds, Gmax, 2) perturbed starts and ends. They are clamped to the
            video and sorted, because large noise swaps them.
        windows: the truth, Gmax > 0.
        clips: (B,) valid clips; a reference is at least half a clip wide.

    Returns:
        S = groups x kinds x Gmax query slots: group by group, positives before negatives.
    """
    device = ends_xx.device
    groups, kinds, longest = ends_xx.shape[1:4]
    spans = xx_to_cxw(ends_xx.clamp(0.0, 1.0).sort(-1).values).flatten(1, 3)
    centre, width = spans.unbind(-1)
    width = width.maximum(NARROWEST_CLIPS / clips[:, None])
    used = windows.valid[:, None, None].expand(-1, groups, kinds, -1).flatten(1)
    index = torch.arange(longest, device=device).repeat(groups * kinds)
    kind = torch.arange(kinds, device=device).repeat_interleave(longest).repeat(groups)
    # Keeps both ends of the reference inside the video.
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
