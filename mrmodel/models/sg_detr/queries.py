"""Decoder queries that know their window: denoising and auxiliary ones (sections 4.3, 4.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.layers.query_groups import LabelledQueries, Noise, noisy_copies
from mrmodel.models.sg_detr.output import AnchorHeads, AnchorTargets
from mrmodel.models.sg_detr.settings import AuxSettings, DenoisingSettings
from mrmodel.spans import cxw_to_xx, xx_to_cxw

# Contrastive denoising: the slots of a group are its positives, then its negatives.
KINDS = 2
FEWEST_SLOTS = 9  # with negatives, as in Co-DETR


def denoising_groups(settings: DenoisingSettings, longest: int) -> int:
    """Number of groups when the fullest sample has `longest` windows."""
    if settings.group_mode == "fixed":
        return settings.groups
    return max(1, settings.number // (KINDS * max(longest, 1)))


def denoising_queries(
    windows: PaddedWindows, clips: Tensor, noise: Noise, noise_scale: float
) -> LabelledQueries:
    """Noisy copies of the true windows, near ones to be restored, far ones to be refused.

    Each end moves on its own, by less than scale x width / 2 (positives), or by between one and two
    times that (negatives).

    Args:
        windows: the truth, Gmax > 0.
        clips: (B,) valid clips.
        noise: see `draw_noise`.
        noise_scale: lambda.

    Returns:
        As `noisy_copies` returns them.
    """
    device = windows.spans_cxw.device
    size, sign = noise.by_group(device)
    far = torch.arange(float(KINDS), device=device).view(1, 1, KINDS, 1, 1)
    half = 0.5 * windows.spans_cxw[..., 1] * noise_scale
    ends = cxw_to_xx(windows.spans_cxw)[:, None, None]
    ends = ends + sign * (size + far) * half[:, None, None, :, None]
    return noisy_copies(ends, windows, clips)


class AnchorQueries(NamedTuple):
    """Auxiliary queries, and the anchor (B, S) that each of them came from."""

    queries: LabelledQueries
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
    chance = torch.rand(positive.shape, generator=generator)
    chance = chance.to(positive.device, non_blocking=True)
    order = positive * (2.0 + chance if count > settings.max else 2.0)
    if fills:
        order = order + (heads.valid & ~positive) * chance
    anchor = order.argsort(dim=1, descending=True, stable=True)[:, :slots]
    chosen = positive.gather(1, anchor)
    used = heads.valid.gather(1, anchor) if fills else chosen
    spans = heads.anchors_cxw if settings.ref == "anchor" else heads.spans_cxw.detach()
    spans = spans.gather(1, anchor.unsqueeze(-1).expand(-1, -1, 2))
    spans = xx_to_cxw(cxw_to_xx(spans).clamp(0.0, 1.0))
    queries = LabelledQueries(
        spans_cxw=torch.where(used.unsqueeze(-1), spans, 0.5),
        window=targets.window.gather(1, anchor).clamp(min=0),
        positive=chosen,
        used=used,
    )
    return AnchorQueries(queries, anchor)
