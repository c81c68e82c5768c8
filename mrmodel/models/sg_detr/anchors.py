"""Anchors of a time axis, and which true window each one answers for (section 4.1).

One anchor sits at each position of each level. Positions, widths and windows are compared in clips,
and windows are first moved to a raster of 1/1024 clip: sums and differences are then exact in
float32, so that equal distances and equal IoUs are equal on every device, whatever the padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.sg_detr.output import AnchorTargets
from mrmodel.models.sg_detr.settings import AtssSettings
from mrmodel.spans import aligned_iou, cxw_to_xx, xx_to_cxw

RASTER = 1024.0  # parts of a clip
TOLERANCE = 1e-6  # of the IoU threshold: candidates of equal IoU reach their own mean
RESCUED_CENTERNESS = 0.05
CENTRE_UNIT, LOG_WIDTH_UNIT = 0.1, 0.2  # of one regression output, as in the cited configuration
MAX_LOG_WIDTH = 4.0


@dataclass(frozen=True, slots=True)
class AnchorGrid:
    """The anchors of a batch, level by level and in temporal order within a level.

    Attributes:
        centre, width: (A,) float32, clips.
        level: (A,) int64.
        level_sizes: number of anchors of each level.
        lengths: (B,) float32, valid clips of each sample.
        valid: (B, A) bool, the anchor's clip is valid and its centre before the end of the video.
    """

    centre: Tensor
    width: Tensor
    level: Tensor
    level_sizes: tuple[int, ...]
    lengths: Tensor
    valid: Tensor

    @property
    def spans_cxw(self) -> Tensor:
        """(B, A, 2) fractions of each sample's valid clips."""
        return torch.stack((self.centre, self.width), dim=-1) / self.lengths[:, None, None]


def strides_and_widths(settings: AtssSettings) -> list[tuple[int, float]]:
    """Clips from anchor to anchor and clips of an anchor, level by level."""
    if settings.layout == "multi_width":
        return [(1, width) for width in settings.widths]
    return [(2**level, settings.anchor_scale * 2**level) for level in range(settings.levels)]


def anchor_grid(mask: Tensor, settings: AtssSettings) -> AnchorGrid:
    """The anchors of samples with the clip mask (B, L)."""
    layout = strides_and_widths(settings)
    masks = [mask[:, ::stride] for stride, _ in layout]
    sizes = tuple(level_mask.shape[1] for level_mask in masks)
    strides, widths = np.array(layout, dtype=np.float32).T
    places = np.concatenate([np.arange(size, dtype=np.float32) for size in sizes])
    number = np.arange(len(sizes)).repeat(sizes)
    columns = ((places + 0.5) * strides[number], widths[number], number)
    centre, width, level = (
        torch.from_numpy(column).to(mask.device, non_blocking=True) for column in columns
    )
    lengths = mask.sum(1).clamp(min=1).float()
    valid = torch.cat(masks, dim=1) & (centre < lengths[:, None])
    return AnchorGrid(centre, width, level, sizes, lengths, valid)


def decode(deltas: Tensor, anchors_cxw: Tensor, coding: str) -> Tensor:
    """Spans from regression outputs; zeros give the anchors themselves.

    Args:
        deltas: (..., 2). ``delta``: shift of the centre in tenths of the anchor's width, and
            fifths of the logarithm of the factor of its width. ``ltrb``: likewise logarithms of
            the factors of the two distances from the anchor's centre to its ends.
        anchors_cxw: (..., 2).
        coding: ``delta`` or ``ltrb``.

    Returns:
        (..., 2) float32 (centre, width), width above 0, not clipped to [0, 1].
    """
    deltas, anchors = deltas.float(), anchors_cxw.float()
    factors = (LOG_WIDTH_UNIT * deltas).clamp(-MAX_LOG_WIDTH, MAX_LOG_WIDTH).exp()
    centre, width = anchors.unbind(-1)
    if coding == "ltrb":
        before, after = (factors * (0.5 * width).unsqueeze(-1)).unbind(-1)
        return xx_to_cxw(torch.stack((centre - before, centre + after), dim=-1))
    moved = centre + CENTRE_UNIT * deltas[..., 0] * width
    return torch.stack((moved, width * factors[..., 1]), dim=-1)


@torch.no_grad()
def assign(grid: AnchorGrid, windows: PaddedWindows, settings: AtssSettings) -> AnchorTargets:
    """Adaptive training sample selection (Zhang et al. 2020) on a time axis.

    Candidates of a window are the `topk` nearest valid anchors of each level. Those become its
    positives whose centre is inside it and whose IoU reaches the mean plus the standard deviation
    of the candidates' IoUs. An anchor that several windows want goes to the one of larger IoU, then
    to the earlier one. Windows left without positives then choose, one after the other, the valid
    anchor of largest IoU that nobody has.
    """
    spans_xx = _on_raster(windows.spans_cxw, grid.lengths)
    anchors_xx = cxw_to_xx(torch.stack((grid.centre, grid.width), dim=-1))
    iou = aligned_iou(anchors_xx, spans_xx.unsqueeze(2))
    wanted = _wanted(grid, spans_xx, iou, settings.topk) & windows.valid.unsqueeze(2)
    window = _owners(wanted, iou)
    owned = wanted & (window.unsqueeze(1) == _indices(wanted))
    window, rescued = _rescue(window, windows.valid & ~owned.any(2), iou, grid.valid)
    centerness = _centerness(grid.centre, window, spans_xx).pow(settings.centerness_pow)
    centerness = torch.where(rescued, centerness.clamp(min=RESCUED_CENTERNESS), centerness)
    return AnchorTargets(window, centerness * (window >= 0))


def _on_raster(spans_cxw: Tensor, lengths: Tensor) -> Tensor:
    """(B, Gmax, 2) fractions -> (start, end) in clips, both on the raster, width above 0."""
    centre, width = (spans_cxw.float() * lengths[:, None, None]).unbind(-1)
    half = (0.5 * RASTER * width).round().clamp(min=1.0)
    middle = (RASTER * centre).round()
    return torch.stack((middle - half, middle + half), dim=-1) / RASTER


def _indices(wanted: Tensor) -> Tensor:
    """(Gmax, 1) window indices."""
    return torch.arange(wanted.shape[1], device=wanted.device).unsqueeze(1)


def _wanted(grid: AnchorGrid, spans_xx: Tensor, iou: Tensor, topk: int) -> Tensor:
    """(B, Gmax, A) bool: the anchor meets the threshold of the window and is centred in it."""
    start, end = spans_xx.unsqueeze(2).unbind(-1)
    distance = (grid.centre - 0.5 * (start + end)).abs()
    distance = distance.masked_fill(~grid.valid.unsqueeze(1), torch.inf)
    nearest = [
        _nearest(level, topk) for level in torch.split(distance, list(grid.level_sizes), dim=2)
    ]
    candidate = torch.cat(nearest, dim=2)
    count = candidate.sum(2, keepdim=True)
    mean = (iou * candidate).sum(2, keepdim=True) / count.clamp(min=1)
    variance = ((iou - mean).square() * candidate).sum(2, keepdim=True) / (count - 1).clamp(min=1)
    inside = (grid.centre > start) & (grid.centre < end)
    return candidate & inside & (iou >= mean + variance.sqrt() - TOLERANCE)


def _nearest(distance: Tensor, topk: int) -> Tensor:
    """(B, Gmax, A) bool: the `topk` smallest finite distances, the earlier one of equal ones."""
    order = distance.sort(dim=2, stable=True)[1][..., :topk]
    chosen = torch.zeros_like(distance, dtype=torch.bool).scatter_(2, order, True)
    return chosen & distance.isfinite()


def _owners(wanted: Tensor, iou: Tensor) -> Tensor:
    """(B, A) index of the window of largest IoU that wants the anchor, -1 if none does."""
    if not wanted.shape[1]:
        return wanted.new_full((wanted.shape[0], wanted.shape[2]), -1, dtype=torch.int64)
    best, owner = iou.masked_fill(~wanted, -1.0).max(1)
    return owner.masked_fill(best < 0, -1)


def _rescue(window: Tensor, missing: Tensor, iou: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Gives each `missing` (B, Gmax) window an anchor, and says which anchors (B, A) those are."""
    rescued = torch.zeros_like(valid)
    # One round serves one window of every sample; nearly always there is none to serve.
    for _ in range(int(missing.sum(1).max())):
        needy, turn = missing.any(1, keepdim=True), missing.int().argmax(1, keepdim=True)
        free = valid & (window < 0)
        own = iou.gather(1, turn.unsqueeze(2).expand(-1, -1, iou.shape[2])).squeeze(1)
        best = own.masked_fill(~free, -1.0).argmax(1, keepdim=True)
        found = needy & free.gather(1, best)
        window = window.scatter(1, best, torch.where(found, turn, window.gather(1, best)))
        rescued = rescued.scatter(1, best, found | rescued.gather(1, best))
        missing = missing.scatter(1, turn, False)
    return window, rescued


def _centerness(centre: Tensor, window: Tensor, spans_xx: Tensor) -> Tensor:
    """(B, A) shorter over longer distance to the two ends of the own window, in [0, 1]."""
    if not spans_xx.shape[1]:
        return torch.zeros_like(window, dtype=torch.float32)
    own = spans_xx.gather(1, window.clamp(min=0).unsqueeze(2).expand(-1, -1, 2))
    before, after = centre - own[..., 0], own[..., 1] - centre
    return (before.minimum(after) / before.maximum(after)).clamp(0.0, 1.0)
