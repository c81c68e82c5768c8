"""The pyramid against the library's grouped convolutions, with and without leaking padding."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.sg_detr.anchors import STRIDES, level_masks
from mrmodel.models.sg_detr.pyramid import FeaturePyramid, SeparableConv
from tests.models.sg_detr.whole import D, close, mask_of, rows_of, settings_of, shaken

LENGTHS = [11, 5, 1]


def pyramid_of(leaks: bool) -> FeaturePyramid:
    return shaken(FeaturePyramid(settings_of(legacy_padding=leaks)))


def separable(rows: Tensor, conv: SeparableConv, norm: nn.LayerNorm) -> Tensor:
    mixed = F.conv1d(rows.mT, conv.depthwise_weight, None, conv.stride, 1, groups=D)
    return F.layer_norm(F.conv1d(mixed, conv.pointwise_weight).mT, (D,), norm.weight, norm.bias)


def plain(pyramid: FeaturePyramid, clips: Tensor) -> list[Tensor]:
    """The levels of clips (B, L, d) without padding."""
    levels: list[Tensor] = []
    for block, stride in zip(pyramid.levels, STRIDES, strict=True):
        rows = F.gelu(levels[-1]) if stride > 2 else clips
        rows = rows.repeat_interleave(2, 1) if stride < 1 else rows
        rows = F.gelu(separable(rows, block.convs[0], block.norms[0]))
        levels.append(separable(rows, block.convs[1], block.norms[1]))
    return levels


@pytest.mark.parametrize("clips", [12, 7])
@pytest.mark.parametrize("leaks", [True, False])
def test_equals_plain_convolutions(clips: int, leaks: bool) -> None:
    """Without padding both forms are the same, also where a level has an odd number of rows."""
    pyramid, rows = pyramid_of(leaks), rows_of([clips, clips]).requires_grad_()
    found, expected = pyramid(rows, mask_of([clips, clips])), plain(pyramid, rows)
    sizes = [math.ceil(clips / stride) for stride in STRIDES]
    assert [level.shape[1] for level in found] == sizes
    close(list(found), expected, 1e-4)
    leaves = [rows, *pyramid.parameters()]
    ours, theirs = (
        torch.autograd.grad(torch.cat([x.tanh() ** 2 for x in levels], 1).sum(), leaves)
        for levels in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_without_leaks_each_sample_is_as_if_alone() -> None:
    pyramid, mask = pyramid_of(False), mask_of(LENGTHS, 3)
    rows = rows_of(LENGTHS, padding=3, garbage=1e4).requires_grad_()
    found, masks = pyramid(rows, mask), level_masks(mask)
    total = torch.zeros(())
    for b, length in enumerate(LENGTHS):
        own = [level[b, exists[b]] for level, exists in zip(found, masks, strict=True)]
        close(own, [level[0] for level in plain(pyramid, rows[b : b + 1, :length])], 1e-4)
        total = total + torch.cat(own).square().sum()
    assert torch.equal(torch.autograd.grad(total, rows)[0].any(-1), mask)


def test_released_lets_padding_leak() -> None:
    """Whatever the mask says, as if padded clips were clips."""
    pyramid, mask = pyramid_of(True), mask_of([8, 12])
    first, second = (rows_of([8, 12], garbage=x) for x in (0.7, -0.7))
    close(list(pyramid(first, mask)), plain(pyramid, first), 1e-4)
    masks = level_masks(mask)
    for one, two, exists in zip(pyramid(first, mask), pyramid(second, mask), masks, strict=True):
        changed = (one - two).abs().amax(-1) > 1e-3
        assert bool(changed[0, exists[0]][-1])
        assert not changed[1].any()
