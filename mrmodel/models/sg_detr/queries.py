"""Decoder queries that know their window: denoising and auxiliary ones (sections 4.3 to 4.5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.sg_detr.output import AnchorHeads, AnchorTargets, KnownQueries
from mrmodel.models.sg_detr.settings import AuxSettings, DenoisingSettings
from mrmodel.spans import cxw_to_xx, xx_to_cxw

# Contrastive denoising: the slots of a group are its positives, then its negatives.
KINDS = 2
NARROWEST_CLIPS = 0.5
FEWEST_SLOTS = 9  # with negatives, as in Co-DETR


class Noise(NamedTuple):
    """Draws of the denoising queries, (Gmax, B, groups, 2, 2) each: size in [0, 1), sign +-1."""

    size: Tensor
    sign: Tensor


def denoising_groups(settings: DenoisingSettings, longest: int) -> int:
    """Number of groups when the fullest sample has `longest` windows."""
    if settings.group_mode == "fixed":
        return settings.groups
    return max(1, settings.number // (KINDS * max(longest, 1)))


def draw_noise(samples: int, groups: int, longest: int, generator: torch.Generator) -> Noise:
    """Fresh draws on the CPU.

    The window is the slowest axis: a fuller sample in the batch adds draws behind the others and
    changes none of them.
    """
    draws = torch.rand((longest, samples, groups, KINDS, 2, 2), generator=generator)
    return Noise(draws[..., 0], torch.where(draws[..., 1] < 0.5, -1.0, 1.0))


def denoising_queries(
    windows: PaddedWindows, clips: Tensor, noise: Noise, noise_scale: float
) -> KnownQueries:
    """Noisy copies of the true windows, near ones to be restored, far ones to be refused.

    Each end moves on its own, by less than scale x width / 2 (positives), or by between one and two
    times that (negatives). Ends are clamped to the video and sorted, as large noise exchanges them.

    Args:
        windows: the truth, Gmax > 0.
        clips: (B,) valid clips; a reference is at least half a clip wide.
        noise: see `draw_noise`.
        noise_scale: lambda.

    Returns:
        Queries with S = groups x 2 x Gmax slots: group by group, positives before negatives.
    """
    device = windows.spans_cxw.device
    size, sign = (part.to(device).permute(1, 2, 3, 0, 4) for part in noise)
    far = torch.tensor([0.0, 1.0], device=device).view(1, 1, KINDS, 1, 1)
    half = 0.5 * windows.spans_cxw[..., 1] * noise_scale
    ends = cxw_to_xx(windows.spans_cxw)[:, None, None]
    ends = ends + sign * (size + far) * half[:, None, None, :, None]
    spans = xx_to_cxw(ends.clamp(0.0, 1.0).sort(-1).values).flatten(1, 3)
    centre, width = spans.unbind(-1)
    width = width.maximum(NARROWEST_CLIPS / clips[:, None])
    groups, longest = size.shape[1], size.shape[3]
    used = windows.valid[:, None, None].expand(-1, groups, KINDS, -1).flatten(1)
    index = torch.arange(longest, device=device).repeat(groups * KINDS)
    kind = torch.arange(KINDS, device=device).repeat_interleave(longest).repeat(groups)
    # Away from the ends of the video, so that both ends of the reference stay inside.
    centre = centre.clamp(0.5 * width, 1.0 - 0.5 * width)
    spans = torch.stack((centre, width), -1)
    return KnownQueries(
        spans_cxw=torch.where(used.unsqueeze(-1), spans, 0.5),
        window=index * used,
        positive=used & (kind == 0),
        used=used,
    )


class AnchorQueries(NamedTuple):
    """Auxiliary queries, and the anchor (B, S) that each of them came from."""

    queries: KnownQueries
    anchor: Tensor


def anchor_queries(
    heads: AnchorHeads, targets: AnchorTargets, settings: AuxSettings, generator: torch.Generator
) -> AnchorQueries:
    """The anchors that answer for a window, as decoder queries with a known answer.

    A sample with more of them than `settings.max` keeps a random choice. Unused slots stay empty,
    or with ``pad: negatives`` hold random background anchors.

    Returns:
        S slots, as many as the fullest sample needs.
    """
    positive = targets.window >= 0
    count = int(positive.sum(1).max())
    fills = settings.pad == "negatives"
    slots = max(min(count, settings.max), FEWEST_SLOTS if fills else 0)
    chance = torch.rand(positive.shape, generator=generator).to(positive.device)
    order = positive * (2.0 + chance if count > settings.max else 2.0)
    if fills:
        order = order + (heads.valid & ~positive) * chance
    anchor = order.argsort(dim=1, descending=True, stable=True)[:, :slots]
    chosen = positive.gather(1, anchor)
    used = heads.valid.gather(1, anchor) if fills else chosen
    spans = heads.anchors_cxw if settings.ref == "anchor" else heads.spans_cxw.detach()
    spans = spans.gather(1, anchor.unsqueeze(-1).expand(-1, -1, 2))
    spans = xx_to_cxw(cxw_to_xx(spans).clamp(0.0, 1.0))
    queries = KnownQueries(
        spans_cxw=torch.where(used.unsqueeze(-1), spans, 0.5),
        window=targets.window.gather(1, anchor).clamp(min=0),
        positive=chosen,
        used=used,
    )
    return AnchorQueries(queries, anchor)


def group_mask(group: Tensor, used: Tensor, sees_match: bool) -> Tensor:
    """Which query may read which (section 4.5).

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
        allowed = allowed | ((row > 0) & (column == 0))
    itself = torch.eye(len(group), dtype=torch.bool, device=group.device)
    return ((allowed & used[:, None, :]) | itself).unsqueeze(1)
