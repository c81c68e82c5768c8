"""Feature pyramid on a time axis: clips at several temporal resolutions.

Follows the published code; docs/models/sg_detr.md, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers.functional import Stack
from mrmodel.models.sg_detr.anchors import STRIDES, level_masks
from mrmodel.models.sg_detr.conv import TAPS, first_weights
from mrmodel.models.sg_detr.settings import SgDetrSettings

Step = Literal["finer", "same", "coarser"]
COARSE = 2.0  # a stride above it is made from the level before, others from the clips


class SeparableConv(nn.Module):
    """Convolution over three positions channel by channel, then one over channels; no biases."""

    def __init__(self, hidden: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.depthwise_weight = first_weights(hidden, 1, TAPS)
        self.pointwise_weight = first_weights(hidden, hidden, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, l, d) -> (B, l / stride rounded up, d); zeros before the first and after the last."""
        padded = F.pad(rows, (0, 0, 1, 1))
        count = -(-rows.shape[1] // self.stride)
        taps = [
            padded[:, tap : tap + self.stride * (count - 1) + 1 : self.stride]
            for tap in range(TAPS)
        ]
        first, second, third = self.depthwise_weight.to(rows.dtype).squeeze(1).unbind(1)
        mixed = torch.addcmul(torch.addcmul(taps[0] * first, taps[1], second), taps[2], third)
        return F.linear(mixed, self.pointwise_weight.squeeze(2))


class PyramidBlock(nn.Module):
    """Two rounds of separable convolution and LayerNorm, GELU between them.

    ``finer`` repeats each row before, ``coarser`` takes every second output of the first
    convolution; `active` puts a GELU before everything.
    """

    def __init__(self, hidden: int, step: Step, active: bool) -> None:
        super().__init__()
        self.step, self.active = step, active
        strides = (2 if step == "coarser" else 1, 1)
        self.convs: Stack[SeparableConv] = Stack(SeparableConv(hidden, s) for s in strides)
        self.norms: Stack[nn.LayerNorm] = Stack(nn.LayerNorm(hidden) for _ in strides)

    def forward(self, rows: Tensor, mask: Tensor | None, level_mask: Tensor | None) -> Tensor:
        """Rows (B, l, d) with their mask (B, l) to the level of `level_mask` (B, l').

        What a position reads outside the masks is zero; None: everything is read.
        """
        rows = _inside(F.gelu(rows) if self.active else rows, mask)
        rows = rows.repeat_interleave(2, dim=1) if self.step == "finer" else rows
        rows = _inside(F.gelu(self.norms[0](self.convs[0](rows))), level_mask)
        output: Tensor = self.norms[1](self.convs[1](rows))
        return output


class FeaturePyramid(nn.Module):
    """The levels: up to stride 2 from the clips, the coarsest from the level before."""

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        self.leaks = settings.legacy_padding
        self.levels: Stack[PyramidBlock] = Stack(
            PyramidBlock(settings.hidden, _step(stride), active=stride > COARSE)
            for stride in STRIDES
        )

    def forward(self, clips: Tensor, mask: Tensor) -> Sequence[Tensor]:
        """Clips (B, L, d), mask (B, L) -> a level (B, L / stride rounded up, d) for each stride.

        With `legacy_padding` convolutions read padded positions, and outputs depend on them.
        """
        clip_mask: Tensor | None = None if self.leaks else mask
        masks: Sequence[Tensor | None] = (
            [None] * len(self.levels) if self.leaks else level_masks(mask)
        )
        levels: list[Tensor] = []
        for block, stride, level_mask in zip(self.levels, STRIDES, masks, strict=True):
            if stride > COARSE:
                source, source_mask = levels[-1], masks[len(levels) - 1]
            else:
                source, source_mask = clips, clip_mask
            levels.append(block(source, source_mask, level_mask))
        return levels


def _inside(rows: Tensor, mask: Tensor | None) -> Tensor:
    return rows if mask is None else rows.masked_fill(~mask.unsqueeze(2), 0.0)


def _step(stride: float) -> Step:
    if stride < 1.0:
        return "finer"
    return "same" if stride == 1.0 else "coarser"
