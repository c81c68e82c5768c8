"""Anchors of the pyramid, and which true window each one answers for.

One anchor sits at each position of each level. All of this counts in anchor units: clips, or with
`legacy_anchor_unit` two seconds. docs/models/sg_detr.md, section 4; assignment after Zhang et al.
2020 (ATSS), with the published constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CENTRE_WEIGHT, WIDTH_WEIGHT = 10.0, 5.0  # of the two regression outputs
MAX_LOG_WIDTH = math.log(62.5)
# Of the levels of the pyramid: clips from one position to the next; width of the anchors as the
# regression counts it, which is `EXTRA` too much; width of the proposals of the query selection as
# a fraction of the video.
STRIDES = (0.5, 1.0, 2.0, 4.0)
SIZES = (4.0, 16.0, 32.0, 64.0)
EXTRA = 1.0
PROPOSAL_WIDTHS = (0.05, 0.2, 0.4, 0.85)
INSIDE = 1e-7  # least distance of a positive anchor's centre to the ends of its window
LEGACY_UNIT_S = 2.0


def level_masks(mask: Tensor) -> list[Tensor]:
    """(B, L) clip mask -> masks (B, L / stride rounded up) of the levels.

    A position exists if its first clip does.
    """
    return [
        mask[:, :: int(stride)] if stride >= 1.0 else mask.repeat_interleave(round(1 / stride), 1)
        for stride in STRIDES
    ]


@dataclass(frozen=True, slots=True)
class AnchorGrid:
    """The anchors of L clips, level by level and in temporal order within a level.

    Attributes:
        centre, size: (A,) float32, anchor units; `size` as the regression counts it.
        proposal_width: (A,) see `PROPOSAL_WIDTHS`.
        level_sizes: number of anchors of each level; their sum is A.
    """

    centre: Tensor
    size: Tensor
    proposal_width: Tensor
    level_sizes: tuple[int, ...]

    @classmethod
    def of(cls, clips: int, device: torch.device) -> AnchorGrid:
        """The anchors of a batch of `clips` clips, padding included."""
        counts = tuple(math.ceil(clips / stride) for stride in STRIDES)
        centres = [
            (torch.arange(count, device=device) + 0.5) * stride
            for count, stride in zip(counts, STRIDES, strict=True)
        ]

        def by_level(values: tuple[float, ...]) -> Tensor:
            parts = zip(counts, values, strict=True)
            return torch.cat([torch.full((count,), value, device=device) for count, value in parts])

        return cls(torch.cat(centres), by_level(SIZES), by_level(PROPOSAL_WIDTHS), counts)

    @property
    def width(self) -> Tensor:
        """(A,) anchor units."""
        return self.size - EXTRA

    @property
    def spans_xx(self) -> Tensor:
        """(A, 2) (start, end)."""
        half = 0.5 * self.width
        return torch.stack((self.centre - half, self.centre + half), dim=-1)

    def decode(self, outputs: Tensor) -> Tensor:
        """Regression outputs (B, A, 2) -> (centre, width), float32; zeros give the anchors.

        The first output is the shift of the centre in tenths of the size, the second the logarithm
        of the width's factor in fifths. A width can be below zero.
        """
        shift, growth = outputs.float().unbind(-1)
        width = (growth / WIDTH_WEIGHT).clamp(max=MAX_LOG_WIDTH).exp() * self.size
        centre = self.centre + shift / CENTRE_WEIGHT * self.size
        return torch.stack((centre, width - EXTRA), dim=-1)


@dataclass(frozen=True, slots=True)
class AnchorTargets:
    """Which true window an anchor answers for.

    Attributes:
        window: (B, A) int64, index of the true window within its sample; -1 = background.
        centerness: (B, A) float32, shorter over longer distance from the anchor's centre to the
            ends of its window; 0 for background.
    """

    window: Tensor
    centerness: Tensor


@torch.no_grad()
def assign(
    grid: AnchorGrid,
    exists: Tensor,
    windows_xx: Tensor,
    valid: Tensor,
    topk: int,
    candidates: Tensor | None = None,
) -> AnchorTargets:
    """Adaptive training sample selection on a time axis.

    Candidates of a window are the `topk` nearest anchors of each level, the earlier one of equally
    near ones. Those become its positives whose centre is inside it and whose IoU reaches the mean
    plus the standard deviation (n - 1) of the candidates' IoUs. An anchor that several windows want
    goes to the one of larger IoU, then to the earlier one.

    Args:
        grid: the anchors.
        exists: (B, A) bool, anchors that take part.
        windows_xx: (B, W, 2) (start, end) in anchor units.
        valid: (B, W) bool.
        topk: candidates of each level.
        candidates: (B, W, A) bool, instead of the nearest anchors; the published code chooses
            otherwise among equally near ones, and tests of parity give its choice.
    """
    anchors = grid.spans_xx.double()
    start, end = windows_xx.double().unsqueeze(2).unbind(-1)
    shared = (anchors[:, 1].minimum(end) - anchors[:, 0].maximum(start)).clamp(min=0.0)
    total = (anchors[:, 1] - anchors[:, 0]) + (end - start)
    iou = shared / (total - shared)
    centre = grid.centre.double()
    if candidates is None:
        candidates = _nearest((centre - 0.5 * (start + end)).abs(), exists, grid, topk)
    count = candidates.sum(2, keepdim=True)
    mean = (iou * candidates).sum(2, keepdim=True) / count.clamp(min=1)
    variance = ((iou - mean).square() * candidates).sum(2, keepdim=True) / (count - 1).clamp(min=1)
    inside = (centre - start).minimum(end - centre) > INSIDE
    wanted = candidates & inside & (iou >= mean + variance.sqrt()) & valid.unsqueeze(2)

    best, window = iou.masked_fill(~wanted, -1.0).max(1)
    window = window.masked_fill(best < 0.0, -1)
    own = windows_xx.double().gather(1, window.clamp(min=0).unsqueeze(2).expand(-1, -1, 2))
    before, after = centre - own[..., 0], own[..., 1] - centre
    # 0 / 0 where a window without length lies on the centre of an anchor.
    centerness = (before.minimum(after) / before.maximum(after)).nan_to_num(0.0).clamp(0.0, 1.0)
    return AnchorTargets(window, (centerness * (window >= 0)).float())


def _nearest(distance: Tensor, exists: Tensor, grid: AnchorGrid, topk: int) -> Tensor:
    """(B, W, A) bool: the `topk` smallest distances of each level, the earlier of equal ones."""
    distance = distance.expand(len(exists), -1, -1).masked_fill(~exists.unsqueeze(1), torch.inf)
    chosen = torch.zeros_like(distance, dtype=torch.bool)
    first = 0
    for level in torch.split(distance, list(grid.level_sizes), dim=2):
        nearest = level.sort(dim=2, stable=True)[1][..., :topk]
        chosen.scatter_(2, first + nearest, True)
        first += level.shape[2]
    return chosen & distance.isfinite()
