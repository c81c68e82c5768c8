"""The decoder: how far a span passes its gradient back, and what its queries may depend on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mrmodel.models.layers.position import span_positions
from mrmodel.models.layers.query_groups import group_mask
from mrmodel.models.sg_detr.decoder import SgDecoder
from mrmodel.models.sg_detr.output import Heads
from mrmodel.models.sg_detr.settings import SgDetrSettings
from tests.rounding import rounding

B, P, L, D, LAYERS = 2, 5, 7, 16, 3


def decoder_of(look_forward: str = "twice", **changes: Any) -> SgDecoder:
    """Every parameter away from its first value."""
    torch.manual_seed(0)
    decoder = {"layers": LAYERS, "look_forward": look_forward} | changes.pop("decoder", {})
    settings = {"hidden": D, "heads": 2, "ffn": 24, "dropout": 0.0, "decoder": decoder} | changes
    built = SgDecoder(SgDetrSettings.model_validate(settings))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return built


def queries_and_clips() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    queries = torch.randn(B, P, D), torch.rand(B, P, 2) * 0.8 + 0.1
    return queries, (torch.randn(B, L, D), torch.randn(B, L, D))


def add_to_offsets(decoder: SgDecoder, extra: Tensor, alone: bool = False) -> None:
    """Add `extra` (K, ...) to the offsets D of the layers, or put it in their place."""
    layers = iter(extra)

    def change(_: nn.Module, __: Any, offset: Tensor) -> Tensor:
        return next(layers) + (0.0 * offset if alone else offset)

    decoder.heads[0].offset.register_forward_hook(change)  # type: ignore[union-attr]


def jacobian_sums(predictions: Tensor, extra: Tensor) -> list[list[bool]]:
    """[l][k]: prediction l depends on the offset of layer k."""
    table = []
    for prediction in predictions:
        (gradient,) = torch.autograd.grad(prediction.sum(), extra, retain_graph=True)
        table.append([bool((row != 0).any()) for row in gradient])
    return table


@pytest.mark.parametrize(
    ("look_forward", "reach"),
    [
        ("twice", [[True, False, False], [True, True, False], [False, True, True]]),
        ("once", [[True, False, False], [False, True, False], [False, False, True]]),
    ],
)
def test_how_far_a_span_looks_back(look_forward: str, reach: list[list[bool]]) -> None:
    decoder = decoder_of(look_forward)
    extra = torch.zeros(LAYERS, B, P, 2, requires_grad=True)
    add_to_offsets(decoder, extra)
    heads = decoder(*queries_and_clips(), None, None)
    assert jacobian_sums(heads.spans_cxw, extra) == reach


def test_looking_forward_changes_no_value() -> None:
    once, twice = (decoder_of(kind)(*queries_and_clips(), None, None) for kind in ("once", "twice"))
    for first, second in zip(parts_of(once), parts_of(twice), strict=True):
        assert torch.equal(first, second)


def test_looking_forward_twice_by_hand() -> None:
    # One query, reference 0.5 with logit 0, offsets 1, 0.5, -0.25: predictions sigmoid(1),
    # sigmoid(1.5), sigmoid(1.25) = 0.731059, 0.817574, 0.777300. The slopes p (1 - p) are
    # 0.196612, 0.149146, 0.173105. The logit of the sigmoid is the identity, so that the slope of
    # prediction l is the same by its own offset and by the one before, and 0 by the one before
    # that.
    decoder = decoder_of()
    given = torch.tensor([1.0, 0.5, -0.25]).view(3, 1, 1, 1).expand(3, 1, 1, 2)
    extra = given.clone().requires_grad_()
    add_to_offsets(decoder, extra, alone=True)
    (content, _), (memory, position) = queries_and_clips()
    queries = content[:1, :1], torch.full((1, 1, 2), 0.5)
    spans = decoder(queries, (memory[:1], position[:1]), None, None).spans_cxw[..., 0].flatten()
    torch.testing.assert_close(spans, torch.tensor([0.731059, 0.817574, 0.777300]))
    slopes = [0.196612, 0.149146, 0.173105]
    expected = [
        [slopes[0], 0.0, 0.0],
        [slopes[1], slopes[1], 0.0],
        [0.0, slopes[2], slopes[2]],
    ]
    for span, row in zip(spans, expected, strict=True):
        (gradient,) = torch.autograd.grad(span, extra, retain_graph=True)
        torch.testing.assert_close(gradient[:, 0, 0, 0], torch.tensor(row))


def test_prediction_is_the_reference_that_the_next_layer_reads() -> None:
    decoder = decoder_of()
    codes: list[Tensor] = []
    decoder.query_position.register_forward_pre_hook(lambda _, inputs: codes.append(inputs[0]))
    heads = decoder(*queries_and_clips(), None, None)
    for prediction, code in zip(heads.spans_cxw[:-1], codes[1:], strict=True):
        # The predictions of all layers come out of one logarithm and one sigmoid, the reference out
        # of its layer's own. The angle of the code is 2 pi times the span.
        close = {"rtol": 0, "atol": 2 * math.pi * rounding(1, stages=2)}
        torch.testing.assert_close(span_positions(prediction, D), code, **close)
        assert not code.requires_grad


@pytest.mark.parametrize("autocast", [False, True])
def test_first_layers_keep_the_reference(autocast: bool) -> None:
    """To float32 precision, even where the layers compute with 8 bits."""
    torch.manual_seed(0)
    decoder = SgDecoder(SgDetrSettings(hidden=D, heads=2, ffn=24))
    queries, memory = queries_and_clips()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        spans = decoder(queries, memory, None, None).spans_cxw
    torch.testing.assert_close(spans, queries[1].expand_as(spans), rtol=0, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_permuted_queries_give_permuted_answers(masked: bool) -> None:
    decoder = decoder_of()
    (content, spans), memory = queries_and_clips()
    order = torch.tensor([3, 0, 4, 1, 2])
    mutual = changed = None
    if masked:
        used = torch.tensor([[True, True, False, True, True], [True] * 5])
        mutual = group_mask(torch.tensor([1, 1, 2, -1, 0]), used, sees_match=True)
        changed = mutual[:, :, order][..., order]
    first = decoder((content, spans), memory, None, mutual)
    second = decoder((content[:, order], spans[:, order]), memory, None, changed)
    assert_heads_close(second, Heads(*(part[:, :, order] for part in parts_of(first))))


def parts_of(heads: Heads) -> list[Tensor]:
    assert heads.iou_logits is not None
    return [heads.logits, heads.spans_cxw, heads.iou_logits]


def assert_heads_close(first: Heads, second: Heads) -> None:
    for one, other in zip(parts_of(first), parts_of(second), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_hidden_clips_are_not_read() -> None:
    decoder = decoder_of()
    queries, (memory, position) = queries_and_clips()
    allowed = (torch.arange(L) < 4).expand(B, L)[:, None, None]
    noisy = memory.clone()
    noisy[:, 4:] = 1e4
    first = decoder(queries, (memory[:, :4], position[:, :4]), None, None)
    assert_heads_close(decoder(queries, (noisy, position), allowed, None), first)


@pytest.mark.parametrize(
    ("decoder", "iou_head", "n_heads"),
    [
        ({}, True, 1),
        ({"share_heads": False}, True, LAYERS),
        ({"modulate": False}, False, 1),
        ({"layers": 1}, True, 1),
    ],
)
def test_switches(decoder: dict[str, Any], iou_head: bool, n_heads: int) -> None:
    built = decoder_of(decoder=decoder, iou_head=iou_head)
    heads = built(*queries_and_clips(), None, None)
    layers = decoder.get("layers", LAYERS)
    assert len(built.heads) == n_heads
    assert heads.logits.shape == (layers, B, P)
    assert heads.spans_cxw.shape == (layers, B, P, 2)
    assert (heads.iou_logits is None) != iou_head
    total = heads.logits.sum() + heads.spans_cxw.sum()
    total = total if heads.iou_logits is None else total + heads.iou_logits.sum()
    total.backward()
    assert all(parameter.grad is not None for parameter in built.parameters())


@pytest.mark.parametrize("width", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("centre", [0.0, 1.0])
def test_extreme_references_stay_finite(centre: float, width: float) -> None:
    decoder = decoder_of()
    (content, _), memory = queries_and_clips()
    spans = torch.tensor([centre, width]).expand(B, P, 2).clone().requires_grad_()
    heads = decoder((content, spans), memory, None, None)
    sum(part.sum() for part in parts_of(heads)).backward()  # type: ignore[union-attr]
    assert all(part.isfinite().all() for part in parts_of(heads))
    gradients = [spans.grad, *(parameter.grad for parameter in decoder.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
