"""Anchor head: a temporal pyramid, and three predictions at each of its positions (4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers.functional import Stack, full_precision
from mrmodel.models.sg_detr.anchors import AnchorGrid, anchor_grid, decode
from mrmodel.models.sg_detr.conv import ConvNorm, NarrowConv
from mrmodel.models.sg_detr.output import AnchorHeads
from mrmodel.models.sg_detr.settings import SgDetrSettings

FIRST_PROBABILITY = 0.01  # of an anchor to hold a moment, before training
FIRST_WEIGHTS = 0.01  # standard deviation of the weights of the predictions
SPAN_AND_CENTERNESS = 3


@dataclass(frozen=True, slots=True)
class _Table:
    """Levels of all samples below each other, a row of zeros after each, and at both ends.

    Attributes:
        rows: (1 + B S + 1, d), S = positions of all levels + number of levels.
        keep: (B S, 1) float, 1 at valid positions.
        positions: indices of the positions within the S rows of a sample.
    """

    rows: Tensor
    keep: Tensor
    positions: Tensor

    @classmethod
    def of(cls, levels: Sequence[Tensor], masks: Sequence[Tensor]) -> _Table:
        """The table of `levels` (B, L_i, d), zero outside their `masks` (B, L_i)."""
        rows = torch.cat([F.pad(level, (0, 0, 0, 1)) for level in levels], dim=1)
        keep = torch.cat([F.pad(mask, (0, 1)) for mask in masks], dim=1)
        sizes = [mask.shape[1] for mask in masks]
        starts = list(accumulate((size + 1 for size in sizes), initial=0))
        positions = np.concatenate(
            [np.arange(start, start + size) for start, size in zip(starts[:-1], sizes, strict=True)]
        )
        padded = F.pad(rows.flatten(0, 1), (0, 0, 1, 1))
        places = torch.from_numpy(positions).to(rows.device, non_blocking=True)
        return cls(padded, keep.flatten().unsqueeze(1).to(rows.dtype), places)


class AnchorHead(nn.Module):
    """Class, span and centerness of the anchors of a video.

    With the layout ``pyramid`` each level has one anchor a position and the levels share the
    weights of the predictions; with ``multi_width`` there is one level, whose positions have one
    anchor of each width.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        hidden, self.settings = settings.hidden, settings.atss
        self.with_features = settings.aux.with_feat
        pyramid = self.settings.layout == "pyramid"
        levels = self.settings.levels if pyramid else 1
        self.per_position = 1 if pyramid else len(self.settings.widths)
        self.coarser: Stack[ConvNorm] = Stack(
            [ConvNorm(hidden, 2, False) for _ in range(levels - 1)]
        )
        depth = range(self.settings.stacked_convs)
        self.class_tower: Stack[ConvNorm] = Stack([ConvNorm(hidden, 1, True) for _ in depth])
        self.span_tower: Stack[ConvNorm] = Stack([ConvNorm(hidden, 1, True) for _ in depth])
        self.classify = NarrowConv(hidden, self.per_position)
        self.regress = NarrowConv(hidden, SPAN_AND_CENTERNESS * self.per_position)
        self.scale = nn.Parameter(torch.ones(levels * self.per_position))
        self.reset_predictions()

    def reset_predictions(self) -> None:
        """Small weights, and a class bias that says background with a probability of 0.99."""
        for prediction in (self.classify, self.regress):
            nn.init.normal_(prediction.linear.weight, std=FIRST_WEIGHTS)
            nn.init.zeros_(prediction.linear.bias)
        bias = -math.log(1.0 / FIRST_PROBABILITY - 1.0)
        nn.init.constant_(self.classify.linear.bias, bias)

    def forward(self, memory: Tensor, mask: Tensor) -> AnchorHeads:
        """Predictions for clip states (B, L, d) with the mask (B, L)."""
        clips = memory.float().masked_fill(~mask.unsqueeze(2), 0.0)
        levels, masks = [clips], [mask]
        for coarser in self.coarser:
            masks.append(masks[-1][:, ::2])
            levels.append(_halve(levels[-1], masks[-1], coarser))
        table = _Table.of(levels, masks)
        class_rows = span_rows = table.rows
        for class_layer, span_layer in zip(self.class_tower, self.span_tower, strict=True):
            class_rows = class_layer(class_rows, table.keep)
            span_rows = span_layer(span_rows, table.keep)
        grid = anchor_grid(mask, self.settings)
        with full_precision(mask.device):
            logits, values = self.classify(class_rows.float()), self.regress(span_rows.float())
        logits = self._by_anchor(logits, table, len(memory)).squeeze(2)
        values = self._by_anchor(values, table, len(memory))
        return AnchorHeads(
            logits=logits,
            spans_cxw=self._spans(values[..., :2], grid),
            centerness=values[..., 2],
            features=self._features(levels) if self.with_features else None,
            anchors_cxw=grid.spans_cxw,
            valid=grid.valid,
        )

    def _features(self, levels: Sequence[Tensor]) -> Tensor:
        """Rows of all levels, once for each anchor of a position: (B, A, d)."""
        rows = torch.cat(list(levels), dim=1).unsqueeze(1)
        return rows.expand(-1, self.per_position, -1, -1).flatten(1, 2)

    def _by_anchor(self, rows: Tensor, table: _Table, samples: int) -> Tensor:
        """(B S, per_position m) -> (B, A, m) float32, in the order of the anchor grid."""
        table_rows = rows.float().view(samples, -1, rows.shape[1])
        positions = table_rows.index_select(1, table.positions)
        by_width = positions.view(*positions.shape[:2], self.per_position, -1)
        return by_width.transpose(1, 2).flatten(1, 2)

    def _spans(self, deltas: Tensor, grid: AnchorGrid) -> Tensor:
        scaled = deltas * self.scale.index_select(0, grid.level).unsqueeze(1)
        return decode(scaled, grid.spans_cxw, self.settings.decode)


def _halve(level: Tensor, mask: Tensor, coarser: ConvNorm) -> Tensor:
    """(B, l, d) -> (B, l', d), l' = l / 2 rounded up; `mask` (B, l') says which of them exist."""
    samples, length, _ = level.shape
    size = mask.shape[1]
    # One row of zeros before a sample, and behind it as many as make 2 l' + 2, so that the samples
    # stay in step; each then has one output too many.
    rows = F.pad(level, (0, 0, 1, 2 * size + 1 - length)).flatten(0, 1)
    keep = F.pad(mask, (0, 1)).flatten().unsqueeze(1).to(level.dtype)
    output: Tensor = coarser(F.pad(rows, (0, 0, 0, 2)), keep)[1:-1]
    return output.view(samples, size + 1, -1)[:, :size]
