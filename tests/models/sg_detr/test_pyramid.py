"""The anchor head against plain convolutions, and what padding must not do."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.models.layers import cpu_kernels
from mrmodel.models.sg_detr import conv
from mrmodel.models.sg_detr.anchors import anchor_grid, decode
from mrmodel.models.sg_detr.conv import ConvNorm
from mrmodel.models.sg_detr.output import AnchorHeads
from mrmodel.models.sg_detr.pyramid import AnchorHead
from mrmodel.models.sg_detr.settings import SgDetrSettings

D = 8
OUTPUTS = ("logits", "spans_cxw", "centerness", "features")


def head_of(**atss: object) -> AnchorHead:
    """A small head, every parameter away from its first value."""
    torch.manual_seed(1)
    head = AnchorHead(SgDetrSettings(hidden=D, heads=2, ffn=D, atss=atss, aux={"with_feat": True}))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def inputs_of(lengths: list[int], padding: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    rows = [torch.randn(length, D) for length in lengths]
    memory = torch.full((len(lengths), max(lengths) + padding, D), 1e4)
    for own, row in zip(memory, rows, strict=True):
        own[: len(row)] = row
    return memory, torch.arange(memory.shape[1]) < torch.tensor(lengths)[:, None]


def convolve(rows: Tensor, linear: torch.nn.Linear, stride: int = 1) -> Tensor:
    """(l, d) -> (l', outputs) by the library's convolution."""
    kernel = linear.weight.view(linear.out_features, 3, -1).transpose(1, 2)
    return F.conv1d(rows.t()[None], kernel, linear.bias, stride=stride, padding=1)[0].t()


def block(rows: Tensor, layer: ConvNorm) -> Tensor:
    normed = layer.norm(convolve(rows, layer.linear, layer.stride))
    return normed if layer.activation is None else layer.activation(normed)


def plain_head(head: AnchorHead, clips: Tensor) -> dict[str, Tensor]:
    """The head on one sample (L, d) without padding, level by level."""
    levels = [clips]
    for coarser in head.coarser:
        levels.append(block(levels[-1], coarser))
    found: dict[str, list[Tensor]] = {"logits": [], "values": []}
    for level in levels:
        class_rows = span_rows = level
        for class_layer, span_layer in zip(head.class_tower, head.span_tower, strict=True):
            class_rows, span_rows = block(class_rows, class_layer), block(span_rows, span_layer)
        logits = convolve(class_rows, head.classify.linear)
        values = convolve(span_rows, head.regress.linear).view(len(level), -1, 3)
        found["logits"].append(logits.t().flatten())
        found["values"].append(values.transpose(0, 1).flatten(0, 1))
    values = torch.cat(found["values"])
    grid = anchor_grid(torch.ones(1, len(clips), dtype=torch.bool), head.settings)
    deltas = values[:, :2] * head.scale[grid.level].unsqueeze(1)
    return {
        "logits": torch.cat(found["logits"]),
        "spans_cxw": decode(deltas, grid.spans_cxw[0], head.settings.decode),
        "centerness": values[:, 2],
        "features": torch.cat(levels).repeat(head.per_position, 1),
    }


LAYOUTS = [
    {"levels": 4},
    {"levels": 3, "stacked_convs": 2, "decode": "ltrb"},
    {"layout": "multi_width", "widths": [2.0, 4.0, 8.0]},
    {"levels": 1, "stacked_convs": 1},
]


@pytest.mark.parametrize("atss", LAYOUTS)
@pytest.mark.parametrize("is_fused", [True, False])
def test_head_equals_plain_convolutions(
    atss: dict[str, object], is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv, "PIECE", 5 * D)
    if not is_fused:
        monkeypatch.setattr(cpu_kernels, "usable", lambda tensor, training: False)
    head = head_of(**atss)
    lengths = [11, 4, 1, 6]
    memory, mask = inputs_of(lengths, padding=2)
    output = head(memory, mask)
    grid = anchor_grid(mask, head.settings)
    for sample, length in enumerate(lengths):
        expected = plain_head(head, memory[sample, :length])
        alone = anchor_grid(torch.ones(1, length, dtype=torch.bool), head.settings)
        own = in_both(grid.level, alone.level)
        for name in OUTPUTS:
            found = getattr(output, name)[sample][own]
            torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-4)
        assert output.valid[sample][own].tolist() == alone.valid[0].tolist()


def in_both(levels: Tensor, short_levels: Tensor) -> Tensor:
    """Indices, among the anchors of padded samples, of those that the sample alone has."""
    found = [
        (levels == level).nonzero().flatten()[: int((short_levels == level).sum())]
        for level in short_levels.unique()
    ]
    return torch.cat(found)


def gradients(head: AnchorHead, memory: Tensor, mask: Tensor) -> list[Tensor]:
    memory = memory.clone().requires_grad_()
    output = head(memory, mask)
    torch.manual_seed(4)
    valid = output.valid.unsqueeze(2)
    tensors = (output.logits[..., None], output.spans_cxw, output.centerness[..., None])
    total = sum(((x * torch.randn_like(x)).tanh() * valid).sum() for x in tensors)
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, [memory, *head.parameters()]))


@pytest.mark.parametrize("atss", LAYOUTS)
def test_written_gradients_equal_autograd(
    atss: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv, "PIECE", 5 * D)
    head = head_of(**atss)
    memory, mask = inputs_of([9, 5, 1])
    found = gradients(head, memory, mask)
    monkeypatch.setattr(cpu_kernels, "usable", lambda tensor, training: False)
    for ours, theirs in zip(found, gradients(head, memory, mask), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert bool((found[0][~mask] == 0).all())


@pytest.mark.parametrize("garbage", [0.0, 1e4, math.nan, math.inf])
def test_padding_changes_nothing(garbage: float) -> None:
    head = head_of()
    memory, mask = inputs_of([7, 3, 12])
    expected = head(memory.masked_fill(~mask[..., None], 0.0), mask)
    found = head(memory.masked_fill(~mask[..., None], garbage), mask)
    for name in OUTPUTS:
        ours, theirs = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert bool(ours.isfinite().all())


def test_samples_do_not_see_each_other() -> None:
    head = head_of()
    memory, mask = inputs_of([7, 7, 12])
    memory.requires_grad_()
    (gradient,) = torch.autograd.grad(head(memory, mask).logits[1].sum(), memory)
    assert bool((gradient[[0, 2]] == 0).all())
    assert bool((gradient[1, :7] != 0).any(1).all())


def test_levels_see_what_the_strides_say() -> None:
    head = head_of(levels=3)
    memory, mask = inputs_of([16])
    memory.requires_grad_()
    logits = head(memory, mask).logits[0]
    # Clip 8 from level 0: tower and prediction reach two clips each way.
    (gradient,) = torch.autograd.grad(logits[8], memory, retain_graph=True)
    assert gradient[0].any(1).nonzero().flatten().tolist() == [6, 7, 8, 9, 10]
    # Level 1, position 4: positions 2..6, position p of which reads the clips 2p-1..2p+1.
    (gradient,) = torch.autograd.grad(logits[16 + 4], memory)
    assert gradient[0].any(1).nonzero().flatten().tolist() == list(range(3, 14))


def test_first_predictions_are_background_and_the_anchors_themselves() -> None:
    torch.manual_seed(0)
    head = AnchorHead(SgDetrSettings(hidden=64, heads=2))
    output = head(torch.randn(2, 20, 64), torch.ones(2, 20, dtype=torch.bool))
    assert float(output.logits.detach().sigmoid().mean()) == pytest.approx(0.01, abs=0.003)
    assert float((output.spans_cxw - output.anchors_cxw).detach().abs().max()) < 0.15


def test_size_is_that_of_the_design() -> None:
    with torch.device("meta"):
        head = AnchorHead(SgDetrSettings())
        mask = torch.ones(2, 9, dtype=torch.bool)
        output = head(torch.randn(2, 9, 256), mask)
    assert sum(p.numel() for p in head.parameters()) == pytest.approx(1.2e6, rel=0.05)
    assert output.spans_cxw.shape == (2, 9 + 5 + 3 + 2 + 1, 2)


def each(output: AnchorHeads) -> list[Tensor]:
    return [getattr(output, name) for name in (*OUTPUTS, "anchors_cxw")]


def test_autocast_gives_float32_near_the_exact_numbers() -> None:
    torch.manual_seed(0)
    head = AnchorHead(SgDetrSettings(hidden=D, heads=2, aux={"with_feat": True}))
    memory, mask = inputs_of([9, 1])
    expected = each(head(memory, mask))
    with torch.autocast("cpu", torch.bfloat16):
        found = each(head(memory.bfloat16(), mask))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("is_fused", [True, False])
def test_every_parameter_learns(is_fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_fused:
        monkeypatch.setattr(cpu_kernels, "usable", lambda tensor, training: False)
    found = gradients(head_of(), *inputs_of([20]))
    assert all(bool(gradient.any()) for gradient in found)


def test_state_survives_saving() -> None:
    head, other = head_of(), AnchorHead(SgDetrSettings(hidden=D, heads=2, ffn=D))
    other.load_state_dict(head.state_dict())
    memory, mask = inputs_of([5, 3])
    assert torch.equal(head(memory, mask).logits, other(memory, mask).logits)
