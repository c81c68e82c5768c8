"""Auxiliary queries: which anchors become one, where they point and what they carry."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mrmodel.models.layers.position import span_positions
from mrmodel.models.sg_detr.output import AnchorHeads, AnchorTargets
from mrmodel.models.sg_detr.queries import AnchorQueries, anchor_queries
from mrmodel.models.sg_detr.settings import AuxSettings
from tests.conformance.test_models import make_batch, make_targets
from tests.models.sg_detr.whole import DecoderInput, detector_of, small_model
from tests.models.small import train_pass

A = 20


class Case(NamedTuple):
    heads: AnchorHeads
    targets: AnchorTargets


def case_of(windows: list[dict[int, int]], valid: list[int]) -> Case:
    """Per sample which anchor answers for which window, and how many anchors exist."""
    generator = torch.Generator().manual_seed(1)
    samples = len(windows)
    window = torch.full((samples, A), -1)
    for b, own in enumerate(windows):
        for anchor, index in own.items():
            window[b, anchor] = index
    ends = torch.rand(2, samples, A, 2, generator=generator) * 0.2 + 0.3
    heads = AnchorHeads(
        logits=torch.zeros(samples, A),
        spans_cxw=ends[0].requires_grad_(),
        centerness=torch.zeros(samples, A),
        features=torch.zeros(samples, A, 8),
        anchors_cxw=ends[1],
        valid=torch.arange(A) < torch.tensor(valid)[:, None],
    )
    return Case(heads, AnchorTargets(window, torch.zeros(samples, A)))


def queries_of(case: Case, seed: int = 0, **aux: Any) -> AnchorQueries:
    settings = AuxSettings.model_validate(aux)
    return anchor_queries(*case, settings, torch.Generator().manual_seed(seed))


TWO_SAMPLES = case_of([{3: 1, 5: 0, 11: 1}, {0: 0}], [20, 6])


def test_the_positive_anchors_in_their_order() -> None:
    queries, anchor = queries_of(TWO_SAMPLES)
    assert queries.used.tolist() == [[True] * 3, [True, False, False]]
    assert torch.equal(queries.positive, queries.used)
    assert anchor[0].tolist() == [3, 5, 11]
    assert anchor[1, 0] == 0
    assert queries.window.tolist() == [[1, 0, 1], [0, 0, 0]]
    own = TWO_SAMPLES.heads.anchors_cxw
    torch.testing.assert_close(queries.spans_cxw[0], own[0, [3, 5, 11]])
    torch.testing.assert_close(queries.spans_cxw[1, 0], own[1, 0])
    assert queries.spans_cxw[1, 1:].tolist() == [[0.5, 0.5]] * 2


def test_full_sample_keeps_a_random_choice() -> None:
    case = case_of([{t: t % 2 for t in range(12)}, {1: 0, 4: 0}], [20, 20])
    chosen = []
    for seed in range(40):
        queries, anchor = queries_of(case, seed, max=5)
        assert queries.used.tolist() == [[True] * 5, [True, True, False, False, False]]
        kept = set(anchor[0].tolist())
        assert len(kept) == 5
        assert kept <= set(range(12))
        assert queries.window[0].tolist() == [t % 2 for t in anchor[0].tolist()]
        assert set(anchor[1, :2].tolist()) == {1, 4}
        chosen.append(kept)
    assert set().union(*chosen) == set(range(12))
    again = queries_of(case, 7, max=5)
    assert set(again.anchor[0].tolist()) == chosen[7]


@pytest.mark.parametrize("seed", range(5))
def test_slots_filled_with_background(seed: int) -> None:
    """At least nine slots; background anchors must exist, and each comes once."""
    queries, anchor = queries_of(TWO_SAMPLES, seed, pad="negatives")
    assert queries.used.tolist() == [[True] * 9, [True] * 6 + [False] * 3]
    assert queries.positive.tolist() == [[True] * 3 + [False] * 6, [True] + [False] * 8]
    assert set(anchor[0, :3].tolist()) == {3, 5, 11}
    assert len(set(anchor[0].tolist())) == 9
    assert set(anchor[1, :6].tolist()) == set(range(6))
    assert (TWO_SAMPLES.targets.window.gather(1, anchor)[0, 3:] == -1).all()
    assert queries.spans_cxw[1, 6:].tolist() == [[0.5, 0.5]] * 3


def test_background_is_a_random_choice() -> None:
    choices = {
        tuple(queries_of(TWO_SAMPLES, seed, pad="negatives").anchor[0, 3:].tolist())
        for seed in range(5)
    }
    assert len(choices) > 1


def test_reference_is_the_anchor_or_its_prediction_clipped_without_gradient() -> None:
    # (0.05, 0.4) is (-0.15, 0.25) and becomes (0, 0.25); (0.9, 0.4) becomes (0.7, 1).
    case = case_of([{0: 0, 1: 0}], [A])
    outside = torch.tensor([[0.05, 0.4], [0.9, 0.4]])
    clipped = torch.tensor([[[0.125, 0.25], [0.85, 0.3]]])
    case.heads.anchors_cxw[0, :2] = outside
    torch.testing.assert_close(queries_of(case).queries.spans_cxw, clipped)
    case.heads.anchors_cxw[0, :2] = 0.5
    with torch.no_grad():
        case.heads.spans_cxw[0, :2] = outside
    decoded = queries_of(case, ref="decoded").queries.spans_cxw
    torch.testing.assert_close(decoded, clipped)
    assert not decoded.requires_grad


def test_no_positive_no_query() -> None:
    queries, anchor = queries_of(case_of([{}, {}], [A, A]))
    assert anchor.shape == (2, 0)
    assert queries.spans_cxw.shape == (2, 0, 2)


@pytest.mark.parametrize("with_feat", [False, True])
def test_content_is_the_code_of_the_anchor_and_its_feature(with_feat: bool) -> None:
    batch, model = make_batch(), small_model(aux={"with_feat": with_feat})
    seen = DecoderInput(model)
    _, parts = train_pass(model, batch, make_targets(batch))
    queries, anchors = parts.aux_queries, parts.anchors
    project = detector_of(model).aux_content
    assert queries is not None
    assert anchors is not None
    assert parts.anchor_targets is not None
    assert project is not None
    dn_slots = parts.dn_queries.used.shape[1] if parts.dn_queries is not None else 0
    slots = slice(dn_slots, dn_slots + queries.used.shape[1])
    content, spans = (part[:, slots] for part in seen.queries)
    assert torch.equal(spans, queries.spans_cxw)
    expected = project(span_positions(spans, 16))
    for b in range(3):
        positive = (parts.anchor_targets.window[b] >= 0).nonzero().squeeze(1)
        feature: Tensor | float = anchors.features[b, positive] if with_feat else 0.0
        own = expected[b, : len(positive)] + feature
        torch.testing.assert_close(content[b, : len(positive)], own)
        assert content[b, len(positive) :].abs().sum() == 0
