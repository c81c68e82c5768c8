"""Anchor head: class, span and centerness at every position of the pyramid (ATSS)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers.functional import Stack, full_precision
from mrmodel.models.sg_detr.anchors import STRIDES, AnchorGrid
from mrmodel.models.sg_detr.conv import ConvNorm, NarrowConv
from mrmodel.models.sg_detr.output import AnchorOutput
from mrmodel.models.sg_detr.settings import SgDetrSettings


@dataclass(frozen=True, slots=True)
class _Table:
    """Levels of all samples below each other, a row of zeros after each, and at both ends.

    Attributes:
        rows: (1 + B S + 1, d), S = positions of all levels + number of levels.
        keep: (B S, 1) float, 1 at positions that exist.
        sizes: positions of each level.
    """

    rows: Tensor
    keep: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, levels: Sequence[Tensor], exists: Tensor) -> _Table:
        """The table of `levels` (B, l_i, d) with the positions that exist (B, A)."""
        sizes = tuple(level.shape[1] for level in levels)
        masks = torch.split(exists, list(sizes), dim=1)
        keep = torch.cat([F.pad(mask, (0, 1)) for mask in masks], dim=1).unsqueeze(2)
        rows = torch.cat([F.pad(level, (0, 0, 0, 1)) for level in levels], dim=1)
        rows = rows.masked_fill(~keep, 0.0)
        return cls(
            F.pad(rows.flatten(0, 1), (0, 0, 1, 1)), keep.flatten(0, 1).to(rows.dtype), sizes
        )

    def positions(self, rows: Tensor) -> Tensor:
        """(B S, m) -> (B, A, m) float32, without the rows between the levels."""
        stretches = rows.float().view(-1, sum(self.sizes) + len(self.sizes), rows.shape[1])
        starts = accumulate((size + 1 for size in self.sizes), initial=0)
        return torch.cat(
            [
                stretches[:, first : first + size]
                for first, size in zip(starts, self.sizes, strict=False)
            ],
            dim=1,
        )


class AnchorHead(nn.Module):
    """Two towers of convolutions, three predictions; levels share all weights but a scale."""

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        hidden, depth = settings.hidden, range(settings.anchor_head_layers)
        self.class_tower: Stack[ConvNorm] = Stack(ConvNorm(hidden) for _ in depth)
        self.span_tower: Stack[ConvNorm] = Stack(ConvNorm(hidden) for _ in depth)
        self.classify = NarrowConv(hidden, 1)
        self.regress = NarrowConv(hidden, 2)
        self.centerness = NarrowConv(hidden, 1)
        self.scales = nn.ParameterList([torch.ones(1) for _ in STRIDES])
        nn.init.constant_(self.classify.bias, prior_logit(settings.prior))

    def forward(
        self, levels: Sequence[Tensor], grid: AnchorGrid, exists: Tensor, unit: Tensor
    ) -> AnchorOutput:
        """Predictions at all positions of the `levels` (B, l_i, d).

        Args:
            levels: of the pyramid, float32.
            grid: its anchors.
            exists: (B, A) bool; convolutions read zeros elsewhere.
            unit: (B,) an anchor unit as a fraction of each video.
        """
        table = _Table.of(levels, exists)
        class_rows = span_rows = table.rows
        for class_layer, span_layer in zip(self.class_tower, self.span_tower, strict=True):
            class_rows = class_layer(class_rows, table.keep)
            span_rows = span_layer(span_rows, table.keep)
        with full_precision(exists.device):
            class_rows, span_rows = class_rows.float(), span_rows.float()
            logits, centerness = self.classify(class_rows), self.centerness(span_rows)
            regression = self.regress(span_rows)
        scale = torch.cat(
            [part.expand(size) for part, size in zip(self.scales, grid.level_sizes, strict=True)]
        )
        regression = table.positions(regression) * scale.unsqueeze(1)
        return AnchorOutput(
            logits=table.positions(logits).squeeze(2),
            regression=regression,
            centerness=table.positions(centerness).squeeze(2),
            spans_cxw=grid.decode(regression),
            exists=exists,
            unit=unit,
        )


def prior_logit(prior: float) -> float:
    """The bias that makes a class head start with the probability `prior`."""
    return -math.log((1.0 - prior) / prior)
