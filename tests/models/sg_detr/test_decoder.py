"""The decoder: what heads and refinement read, where gradients stop, what queries depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mrmodel.models.layers.position import span_positions
from mrmodel.models.layers.query_groups import group_mask
from mrmodel.models.sg_detr.decoder import SgDecoder
from mrmodel.models.sg_detr.output import Heads
from mrmodel.spans import inverse_sigmoid
from tests.models.sg_detr.whole import D, close, settings_of, shaken

B, P, L, LAYERS = 2, 5, 7, 3
NOWHERE = [[False] * LAYERS] * LAYERS


def decoder_of(**changes: Any) -> SgDecoder:
    return shaken(SgDecoder(settings_of(**{"decoder_layers": LAYERS} | changes)), 0.2)


def given() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Contents and references; clips and their codes."""
    torch.manual_seed(1)
    queries = torch.randn(B, P, D), torch.rand(B, P, 2) * 0.8 + 0.1
    return queries, (torch.randn(B, L, D), torch.randn(B, L, D))


def parts_of(heads: Heads) -> list[Tensor]:
    return [heads.logits, heads.spans_cxw, heads.iou_logits]


def test_states_go_on_raw_and_only_heads_read_normed_ones() -> None:
    """Layer by layer: state, reference, refined reference, and the three predictions."""
    decoder, ((state, reference), memory) = decoder_of(), given()
    found = decoder((state, reference), memory, None, None)
    for k, layer in enumerate(decoder.layers):
        code = span_positions(reference, D)
        modulation = decoder.width_scale(state).sigmoid() / reference[..., 1:]
        scaled = code * decoder.query_scale(state) * modulation
        state = layer(state, (decoder.query_position(code), scaled), memory, None, None)
        normed = decoder.norm(state)
        refined = (decoder.refinement(state) + inverse_sigmoid(reference)).sigmoid()
        predicted = (decoder.span_head(normed) + inverse_sigmoid(reference)).sigmoid()
        assert decoder.iou_head is not None
        iou = decoder.iou_head(torch.cat((state, span_positions(refined, D)), dim=-1))
        expected = [decoder.class_head(normed)[..., 0], predicted, iou[..., 0]]
        close([part[k] for part in parts_of(found)], expected, 2e-5)
        reference = refined


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        # A span starts from the refinement of the layer before. The last one has no gradient.
        ("spans_cxw", [[False] * 3, [True, False, False], [False, True, False]]),
        ("logits", NOWHERE),
        ("iou_logits", NOWHERE),
    ],
)
def test_how_far_a_prediction_looks_back(part: str, expected: list[list[bool]]) -> None:
    """[l][k]: the prediction of layer l has a gradient by the refinement of layer k."""
    decoder, extra = decoder_of(), torch.zeros(LAYERS, B, P, 2, requires_grad=True)
    layers = iter(extra)

    def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output + next(layers)

    decoder.refinement.register_forward_hook(add)
    table = []
    for prediction in getattr(decoder(*given(), None, None), part):
        gradient = torch.autograd.grad(
            prediction.sum(), extra, retain_graph=True, allow_unused=True
        )[0]
        table.append(NOWHERE[0] if gradient is None else gradient.flatten(1).any(1).tolist())
    assert table == expected


def test_references_of_the_first_layer_keep_their_gradient() -> None:
    """Learned references are taught by the first layer's codes and predictions."""
    (content, spans), memory = given()
    heads = decoder_of()((content, spans.requires_grad_()), memory, None, None)
    for part in (heads.spans_cxw[0], heads.logits[0]):
        assert bool(torch.autograd.grad(part.sum(), spans, retain_graph=True)[0].all())


@pytest.mark.parametrize("masked", [False, True])
def test_permuted_queries_give_permuted_answers(masked: bool) -> None:
    decoder, ((content, spans), memory) = decoder_of(), given()
    order = torch.tensor([3, 0, 4, 1, 2])
    mutual = changed = None
    if masked:
        used = torch.tensor([[True, True, False, True, True], [True] * 5])
        mutual = group_mask(torch.tensor([-1, -1, -1, 0, 0]), used, sees_match=False)
        changed = mutual[:, :, order][..., order]
    first = decoder((content, spans), memory, None, mutual)
    second = decoder((content[:, order], spans[:, order]), memory, None, changed)
    close(parts_of(second), [part[:, :, order] for part in parts_of(first)], 2e-5)


def test_hidden_clips_are_not_read() -> None:
    decoder, (queries, (memory, position)) = decoder_of(), given()
    allowed = (torch.arange(L) < 4).expand(B, L)
    noisy = memory.masked_fill(~allowed[..., None], 1e4)
    found = decoder(queries, (noisy, position), allowed[:, None, None], None)
    expected = decoder(queries, (memory[:, :4], position[:, :4]), None, None)
    close(parts_of(found), parts_of(expected), 2e-5)


def test_without_iou_head_its_logits_are_those_of_the_class() -> None:
    heads = decoder_of(iou_head=False)(*given(), None, None)
    assert heads.iou_logits is heads.logits
