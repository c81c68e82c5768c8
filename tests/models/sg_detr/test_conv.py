"""Convolutions as products of rows, and the anchor head of them, against the library's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.models.layers import cpu_kernels
from mrmodel.models.sg_detr import conv
from mrmodel.models.sg_detr.anchor_head import AnchorHead
from mrmodel.models.sg_detr.anchors import STRIDES, AnchorGrid, level_masks
from mrmodel.models.sg_detr.conv import ConvNorm, NarrowConv
from tests.models.sg_detr.whole import D, close, mask_of, rows_of, settings_of, shaken

# Three stretches of time, parted by rows of zeros.
STRETCHES = (7, 1, 4)
KEEP = torch.tensor([row for n in STRETCHES for row in [1.0] * n + [0.0]]).unsqueeze(1)
LENGTHS = [11, 4, 1]


@pytest.fixture(params=[True, False], ids=["fused", "plain"], autouse=True)
def is_fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms; pieces of five rows, the last one incomplete."""
    monkeypatch.setattr(conv, "CHUNK", 5 * D)
    if not request.param:
        monkeypatch.setattr(cpu_kernels, "usable", lambda tensor, training: False)


def assert_same(found: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    """Values and gradients."""
    close(found, expected, 1e-4)
    weights = torch.randn_like(expected)
    ours, theirs = (
        torch.autograd.grad((x * weights).tanh().sum(), leaves, retain_graph=True)
        for x in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def convolved(rows: Tensor, layer: ConvNorm | NarrowConv) -> Tensor:
    """(l, d) -> (l, m) of one stretch."""
    if isinstance(layer, NarrowConv):
        return F.conv1d(rows.T[None], layer.weight, layer.bias, padding=1)[0].T
    rows, norm = F.conv1d(rows.T[None], layer.weight, padding=1)[0].T, layer.norm
    return F.layer_norm(rows, (D,), norm.weight, norm.bias).relu()


@pytest.mark.parametrize("outputs", [None, 1, 2])
def test_one_layer(outputs: int | None) -> None:
    layer = shaken(NarrowConv(D, outputs) if outputs else ConvNorm(D))
    leaf = torch.randn(len(KEEP), D).requires_grad_()
    table = F.pad(leaf * KEEP, (0, 0, 1, 1))
    if isinstance(layer, NarrowConv):
        found = layer(table)
    else:
        output = layer(table, KEEP)
        found = output[1:-1]
        # The output is a table again.
        assert not output[[0, -1]].any()
        assert not found[KEEP[:, 0] == 0].any()
    ours, clips = (
        [part[:-1] for part in rows.split([n + 1 for n in STRETCHES])] for rows in (found, leaf)
    )
    expected = torch.cat([convolved(rows, layer) for rows in clips])
    assert_same(torch.cat(ours), expected, [leaf, *layer.parameters()])


@pytest.mark.parametrize("in_inference", [False, True])
def test_other_weights_are_read_at_once(in_inference: bool) -> None:
    """Without gradients kernels are made once, until the weight changes."""
    with torch.inference_mode(in_inference), torch.no_grad():
        layer, rows = shaken(ConvNorm(D)).eval(), torch.randn(9, D)
        for _ in range(3):
            found = layer(F.pad(rows, (0, 0, 1, 1)), torch.ones(9, 1))
            close(found[1:-1], convolved(rows, layer), 1e-4)
            layer.weight.normal_()
        layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight))
        found = layer(F.pad(rows, (0, 0, 1, 1)), torch.ones(9, 1))
        close(found[1:-1], convolved(rows, layer), 1e-4)


@pytest.mark.parametrize("stretches", [(7, 1, 4), (7, 1, 5), (1,), (2,)])
def test_pairs_of_outputs_without_gradients(stretches: tuple[int, ...]) -> None:
    keep = torch.tensor([row for n in stretches for row in [1.0] * n + [0.0]]).unsqueeze(1)
    layer = shaken(ConvNorm(D)).eval()
    rows = torch.randn(len(keep), D) * keep
    with torch.no_grad():
        output = layer(F.pad(rows, (0, 0, 1, 1)), keep)
        assert not output[[0, -1]].any()
        assert not output[1:-1][keep[:, 0] == 0].any()
        sizes = [n + 1 for n in stretches]
        for found, clips in zip(output[1:-1].split(sizes), rows.split(sizes), strict=True):
            close(found[:-1], convolved(clips[:-1], layer), 1e-4)


def plain_head(head: AnchorHead, levels: list[Tensor]) -> Tensor:
    """(A, 6) of one sample: logit, centerness, regression, span."""
    found = []
    for rows, scale in zip(levels, head.scales, strict=True):
        of_class = of_span = rows
        for class_layer, span_layer in zip(head.class_tower, head.span_tower, strict=True):
            of_class, of_span = convolved(of_class, class_layer), convolved(of_span, span_layer)
        regression = convolved(of_span, head.regress) * scale
        logits = (convolved(of_class, head.classify), convolved(of_span, head.centerness))
        found.append(torch.cat((*logits, regression), dim=1))
    answers = torch.cat(found)
    grid = AnchorGrid.of(len(levels[1]), torch.device("cpu"))
    return torch.cat((answers, grid.decode(answers[:, 2:])), dim=1)


def test_the_anchor_head_level_by_level_and_sample_by_sample() -> None:
    """With garbage at the padding."""
    head = shaken(AnchorHead(settings_of(anchor_head_layers=2)))
    mask = mask_of(LENGTHS, padding=2)
    sizes = [[math.ceil(n / s) for n in [*LENGTHS, 13]] for s in STRIDES]
    levels = [
        rows_of(own, garbage=1e4, seed=i)[:-1].requires_grad_() for i, own in enumerate(sizes)
    ]
    grid = AnchorGrid.of(13, torch.device("cpu"))
    exists = torch.cat(level_masks(mask), dim=1)
    output = head(levels, grid, exists, 1.0 / mask.sum(1))
    logits = (output.logits[..., None], output.centerness[..., None])
    found = torch.cat((*logits, output.regression, output.spans_cxw), dim=-1)
    expected = [
        plain_head(head, [rows[b, : own[b]] for rows, own in zip(levels, sizes, strict=True)])
        for b in range(len(LENGTHS))
    ]
    assert_same(found[exists], torch.cat(expected), [*levels, *head.parameters()])
