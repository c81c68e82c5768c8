"""Losses of queries, anchors, alignment and clip scores against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sg_detr.anchors import AnchorTargets
from mrmodel.models.sg_detr.criterion import saliency_losses
from mrmodel.models.sg_detr.host_inputs import make_host_inputs
from mrmodel.models.sg_detr.losses import (
    alignment_losses,
    anchor_losses,
    auxiliary_losses,
    match_heads,
    matched_losses,
    matching_cost,
)
from mrmodel.models.sg_detr.output import Alignment, AnchorOutput, Heads, TrainingParts
from mrmodel.models.sg_detr.settings import MatchSettings
from mrmodel.types import Targets
from tests.conformance.test_models import make_batch, make_targets
from tests.models.sg_detr.whole import D, mask_of, rows_of, settings_of

K, B, Q = 2, 3, 5
COUNTS = [2, 0, 1]
TRUE = [[[0.3, 0.4], [0.7, 0.5]], [[0.5, 0.5]] * 2, [[0.2, 0.1], [0.5, 0.5]]]
WINDOWS = PaddedWindows(torch.tensor(TRUE), torch.arange(2) < torch.tensor(COUNTS)[:, None])
MATCH = torch.full((K, B, Q), -1)
MATCH[0, 0, 3], MATCH[0, 0, 1], MATCH[0, 2, 0] = 0, 1, 0  # the second layer has none
Span = list[float]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def heads_of() -> Heads:
    logits, iou_logits = 4.0 * rand(2, K, B, Q, seed=1) - 2.0
    return Heads(logits, 0.02 + 0.96 * rand(K, B, Q, 2), iou_logits)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bce(logit: float, target: float) -> float:
    return math.log1p(math.exp(logit)) - logit * target


def smooth(error: float) -> float:
    return error * error / 2 if abs(error) < 1 else abs(error) - 0.5


def ends(span: Span) -> tuple[float, float]:
    return span[0] - span[1] / 2, span[0] + span[1] / 2


def ious(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """IoU and generalised IoU of (start, end)."""
    (a, b), (c, d) = one, other
    shared = max(0.0, min(b, d) - max(a, c))
    union, hull = b - a + d - c - shared, max(b, d) - min(a, c)
    return shared / union, shared / union - (hull - union) / hull


def mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def assert_terms(found: dict[str, Tensor], expected: list[dict[str, float]]) -> None:
    """Of each layer, or kind of scores."""
    assert found.keys() == expected[0].keys()
    for name, values in found.items():
        assert values.dtype == torch.float32
        assert values.tolist() == pytest.approx([terms[name] for terms in expected], abs=1e-5), name


def test_matching() -> None:
    """The cost of every pair, and the cheapest pairs; garbage at the padding of the windows."""
    heads, weights = heads_of(), MatchSettings(span=3.0, giou=2.0, label=5.0, iou=0.5)
    noisy = replace(
        WINDOWS, spans_cxw=WINDOWS.spans_cxw.masked_fill(~WINDOWS.valid[..., None], 1e4)
    )
    cost, match = matching_cost(heads, noisy, weights), match_heads(heads, noisy, weights)
    for k, b, q in product(range(K), range(B), range(Q)):
        span, logits = heads.spans_cxw[k, b, q].tolist(), (heads.logits, heads.iou_logits)
        p, iou = (sigmoid(float(part[k, b, q])) for part in logits)
        for w in range(COUNTS[b]):
            expected = 3.0 * sum(abs(x - y) for x, y in zip(span, TRUE[b][w], strict=True))
            expected -= 2.0 * ious(ends(span), ends(TRUE[b][w]))[1] + 5.0 * p + 0.5 * iou
            assert float(cost[k, b, q, w]) == pytest.approx(expected, abs=1e-5)
    for k in range(K):
        pairs = [(i, j) for i, j in product(range(Q), range(Q)) if i != j]
        best = min(pairs, key=lambda pair: float(cost[k, 0, pair, (0, 1)].sum()))
        assert match[k, 0].tolist() == [best.index(q) if q in best else -1 for q in range(Q)]
        assert match[k, 1].tolist() == [-1] * Q
        assert match[k, 2].argmax() == cost[k, 2, :, 0].argmin()


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_matched_queries(weight: float) -> None:
    heads, expected = heads_of(), []
    for k in range(K):
        terms: dict[str, list[float]] = {"label": [], "span": [], "giou": [], "iou": []}
        for b, q in product(range(B), range(Q)):
            own, logit = int(MATCH[k, b, q]), float(heads.logits[k, b, q])
            terms["label"].append(bce(logit, 1.0) if own >= 0 else weight * bce(logit, 0.0))
            if own >= 0:
                span, true = heads.spans_cxw[k, b, q].tolist(), TRUE[b][own]
                iou, giou = ious(ends(span), ends(true))
                terms["span"].append(mean([smooth(x - y) for x, y in zip(span, true, strict=True)]))
                terms["giou"].append(1 - giou)
                terms["iou"].append(bce(float(heads.iou_logits[k, b, q]), iou))
        expected.append({name: mean(values) for name, values in terms.items()})
    leaves = [part.requires_grad_() for part in (heads.logits, heads.spans_cxw, heads.iou_logits)]
    found = matched_losses(heads, MATCH, WINDOWS, weight)
    assert_terms(found, expected)
    total = torch.stack(tuple(found.values())).sum()
    of_class, of_spans, of_iou = torch.autograd.grad(total, leaves, retain_graph=True)
    assert bool(of_class.all())
    assert torch.equal(of_spans.any(-1), MATCH >= 0)
    assert torch.equal(of_iou != 0, MATCH >= 0)
    # The IoU is a target, not a prediction.
    assert torch.autograd.grad(found["iou"].sum(), leaves[1], allow_unused=True) == (None,)


def queries_of(window: list[list[int]], used: list[list[int]]) -> LabelledQueries:
    """Slots of a window, -1 for background."""
    index, exists = torch.tensor(window), torch.tensor(used) > 0
    spans = torch.zeros(*index.shape, 2)
    return LabelledQueries(spans, index.clamp(min=0), (index >= 0) & exists, exists)


def test_auxiliary_queries() -> None:
    heads, expected = heads_of(), []
    window = [[1, 0, -1, 1, 1], [-1] * 5, [0, -1, -1, -1, 0]]
    used = [[1] * 5, [0] * 5, [1, 1, 1, 0, 0]]
    for k in range(K):
        terms: dict[str, list[float]] = {"label": [], "span": [], "giou": []}
        for b, q in product(range(B), range(Q)):
            own = window[b][q]
            if used[b][q]:
                terms["label"].append(bce(float(heads.logits[k, b, q]), float(own >= 0)))
            if used[b][q] and own >= 0:
                span, true = ends(heads.spans_cxw[k, b, q].tolist()), ends(TRUE[b][own])
                terms["span"].append(mean([abs(x - y) for x, y in zip(span, true, strict=True)]))
                terms["giou"].append(1 - ious(span, true)[1])
        expected.append({name: mean(values) for name, values in terms.items()})
    assert_terms(auxiliary_losses(heads, queries_of(window, used), WINDOWS), expected)


def test_anchors() -> None:
    """Of two samples, the second without positives; in anchor units, one width is below zero."""
    windows = [[(2.0, 5.0), (0.0, 1.5)], [(1.0, 1.0)] * 2]
    own = [[0, 1, -1, 1, -1, -1], [-1] * 6]
    weights = [[0.5, 1.0, 0.0, 0.2, 0.0, 0.0], [0.0] * 6]
    exists = torch.arange(6) < torch.tensor([[5], [4]])
    logits, centerness = 4.0 * rand(2, 2, 6, seed=3) - 2.0
    spans = 5.0 * rand(2, 6, 2, seed=4)
    spans[0, 3, 1] = -0.4
    terms = dict.fromkeys(("label", "span", "giou", "centerness"), 0.0)
    for b, i in product(range(2), range(6)):
        p, positive = sigmoid(float(logits[b, i])), own[b][i] >= 0
        if exists[b, i]:
            factor = 0.25 * (1 - p) ** 2 if positive else 0.75 * p**2
            terms["label"] += factor * bce(float(logits[b, i]), positive)
        if positive:
            true, (start, end) = windows[b][own[b][i]], ends(spans[b, i].tolist())
            terms["span"] += weights[b][i] * (smooth(start - true[0]) + smooth(end - true[1]))
            terms["giou"] += weights[b][i] * (1 - ious((start, max(start, end)), true)[1])
            terms["centerness"] += bce(float(centerness[b, i]), weights[b][i])
    # Three positives of weight 1.7.
    divisors = {"label": 3, "span": 1.7, "giou": 1.7, "centerness": 3}
    output = AnchorOutput(
        logits.masked_fill(~exists, 1e4), centerness, torch.zeros(2, 6, 2), spans, exists,
        torch.ones(2),
    )  # fmt: skip
    targets, true_xx = (
        AnchorTargets(torch.tensor(own), torch.tensor(weights)),
        torch.tensor(windows),
    )
    found = anchor_losses(output, targets, true_xx)
    expected = {name: terms[name] / divisors[name] for name in terms}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        expected, abs=1e-5
    )
    nothing = AnchorTargets(torch.full((2, 6), -1), torch.zeros(2, 6))
    found = anchor_losses(output, nothing, true_xx)
    assert [float(x) for x in found.values()] == [
        pytest.approx(float(found["label"])),
        0.0,
        0.0,
        0.0,
    ]
    assert float(found["label"]) > 0.0


@pytest.mark.parametrize("legacy", [False, True])
def test_alignment(legacy: bool) -> None:
    lengths, mask = [5, 3, 1], mask_of([5, 3, 1], padding=2)
    labels = torch.tensor([[0.0, 3, 0, 12, 0, 0, 0], [1, 0, 2, 0, 0, 0, 0], [0] * 7])
    moment, sentence = rand(2, 3, D, seed=5) - 0.4
    clips = rows_of(lengths, padding=2)
    align = entropy = 0.0
    for i, j in product(range(3), range(3)):
        cosine = float(torch.cosine_similarity(moment[i], sentence[j], dim=0))
        # Mean over the three moments, sum over the sentences.
        align += 0.5 * (float(i == j) - sigmoid(cosine)) ** 2 * bce(cosine, float(i == j)) / 3
    for i, t in mask.nonzero().tolist():
        logit = float(moment[i] @ clips[i, t]) / math.sqrt(D)
        entropy += bce(logit, float(labels[i, t] > 0))
    found = alignment_losses(Alignment(moment, moment, clips, sentence), labels, mask, legacy)
    assert float(found["alignment"]) == pytest.approx(align, rel=1e-5)
    # As published all 21 places of the batch count, not the nine clips.
    assert float(found["moment"]) == pytest.approx(entropy / (21 if legacy else 9), rel=1e-5)


LENGTHS, MASK = [5, 3, 4], mask_of([5, 3, 4])
LABELS = torch.tensor([[0.4, 12, 3, 3, 7], [0, 0, 0, 0, 0], [1, 0, 2, 5, 0]])
PAIRS = [[1, 4], [0, 2], [3, 2]], [[2, 0], [0, 2], [0, 1]]
SCORES, NEGATIVE = 4.0 * rand(2, 2, 3, 5, seed=6) - 2.0  # two kinds of scores each


def clip_losses(
    has: list[bool], padding: int = 0, garbage: float = 0.0, **changes: Any
) -> dict[str, Tensor]:
    mask = mask_of(LENGTHS, padding)

    def padded(rows: Tensor) -> Tensor:
        longer = torch.full((*rows.shape[:-1], 5 + padding), garbage)
        longer[..., :5] = torch.where(MASK, rows, garbage)
        return longer

    batch = make_batch()
    host = make_host_inputs(batch, make_targets(batch), settings_of(), torch.Generator())
    host = replace(host, has_negative=torch.tensor(has))
    parts = TrainingParts(host, mask, padded(LABELS), *[torch.zeros(0)] * 4)
    targets = Targets(torch.zeros(0, 2), [0] * 3, *map(torch.tensor, PAIRS), padded(LABELS))
    settings = settings_of(**changes)
    return saliency_losses(padded(SCORES), padded(NEGATIVE), parts, targets, settings)


def plain_clip_losses(kind: int, has: list[bool], legacy: bool) -> dict[str, float]:
    scores, negative = SCORES[kind].tolist(), NEGATIVE[kind].tolist()
    margins, rank = [], 0.0
    for b, pair in product(range(3), range(2)):
        pos, neg = (scores[b][side[b][pair]] for side in PAIRS)
        margins.append(2 * max(0.0, 0.15 + sigmoid(neg) - sigmoid(pos)))
    for group in (True, False):
        members = [b for b in range(3) if has[b] == group]
        if legacy and not group and len(members) == 1:
            continue  # normalised over the batch axis: log 1
        for b in members:
            own = [x / 0.5 for x in scores[b][: LENGTHS[b]]]
            others = [x / 0.5 for x in negative[b][: LENGTHS[b]]] if group else []
            total = math.log(sum(map(math.exp, own + others)))
            for threshold in range(1, 12):
                best = [x for x, y in zip(own, LABELS[b], strict=False) if y >= threshold]
                rank += (total - mean(best)) / len(members) / 12 if best else 0.0
    clips = MASK.nonzero().tolist()
    return {
        "margin": mean(margins),
        "rank": rank,
        "relevance": mean([bce(scores[b][t], min(float(LABELS[b, t]), 1.0)) for b, t in clips]),
        "negative": mean([bce(negative[b][t], 0.0) for b, t in clips if has[b]]),
    }


@pytest.mark.parametrize(
    "has", [[True] * 3, [False, True, True], [False] * 3, [False, True, False]]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_clip_scores(has: list[bool], legacy: bool) -> None:
    """Kinds of scores apart; samples with and without negative sentence apart."""
    found = clip_losses(has, legacy_rank_axis=legacy)
    assert_terms(found, [plain_clip_losses(kind, has, legacy) for kind in range(2)])


@pytest.mark.parametrize("garbage", [1e4, math.nan])
def test_padding_changes_no_loss_of_clip_scores(garbage: float) -> None:
    found, expected = clip_losses([True, False, True], 4, garbage), clip_losses([True, False, True])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
