"""Matching of all layers at once: hand-computed costs, and agreement with trying everything."""

from __future__ import annotations

import logging
import math
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.sg_detr.loss_set_matching import LayerwiseMatcher
from mrmodel.models.sg_detr.output import Heads
from mrmodel.models.sg_detr.settings import SgDetrSettings

KINDS = ("sdet", "additive", "prob", "focal")


def matcher(**values: Any) -> LayerwiseMatcher:
    return LayerwiseMatcher(SgDetrSettings.model_validate(values))


def windows_of(*samples: list[tuple[float, float]], padding: float = 0.5) -> PaddedWindows:
    longest = max(len(rows) for rows in samples)
    spans = torch.full((len(samples), longest, 2), padding)
    valid = torch.zeros(len(samples), longest, dtype=torch.bool)
    for sample, rows in enumerate(samples):
        spans[sample, : len(rows)] = torch.tensor(rows).view(-1, 2)
        valid[sample, : len(rows)] = True
    return PaddedWindows(spans, valid, sum(map(len, samples)))


def random_heads(seed: int, layers: int, samples: int, queries: int) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, samples, queries)
    spans = 0.01 + 0.98 * torch.rand(*shape, 2, generator=generator)
    logits, iou_logits = 2.0 * torch.randn(2, *shape, generator=generator)
    return Heads(logits, spans, iou_logits)


def random_windows(seed: int, counts: list[int]) -> PaddedWindows:
    generator = torch.Generator().manual_seed(seed + 1)
    rows = [(0.02 + 0.96 * torch.rand(n, 2, generator=generator)).tolist() for n in counts]
    return windows_of(*[[(c, w) for c, w in sample] for sample in rows])


def plain_cost(
    span: list[float], true: list[float], logit: float, iou_logit: float, kind: str
) -> float:
    p, u = (1 / (1 + math.exp(-x)) for x in (logit, iou_logit))
    of_class = {
        "sdet": -math.sqrt(p * u),
        "additive": -p - u,
        "prob": -p,
        "focal": -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p),
    }[kind]
    start, end = span[0] - span[1] / 2, span[0] + span[1] / 2
    true_start, true_end = true[0] - true[1] / 2, true[0] + true[1] / 2
    inter = max(0.0, min(end, true_end) - max(start, true_start))
    union = span[1] + true[1] - inter
    hull = max(end, true_end) - min(start, true_start)
    giou = inter / union - (hull - union) / hull
    distance = abs(span[0] - true[0]) + abs(span[1] - true[1])
    return 5 * of_class + 10 * distance + (1 - giou)


def cheapest(cost: list[list[float]]) -> float:
    """Least total over all ways to pair as many (query, window) as there can be."""
    queries, windows = len(cost), len(cost[0])
    if queries >= windows:
        ways = permutations(range(queries), windows)
        return min(sum(cost[q][g] for g, q in enumerate(way)) for way in ways)
    ways = permutations(range(windows), queries)
    return min(sum(cost[q][g] for q, g in enumerate(way)) for way in ways)


def paired(row: Tensor) -> list[tuple[int, int]]:
    return [(query, window) for query, window in enumerate(row.tolist()) if window >= 0]


def test_costs_by_hand() -> None:
    # p = 3/4, IoU^ = 1/3; (0.4, 0.6) against (0.2, 0.6): L1 0.1 + 0.2, gIoU = IoU = 1/2.
    heads = Heads(
        torch.full((1, 1, 1), math.log(3.0)),
        torch.tensor([[[[0.5, 0.2]]]]),
        torch.full((1, 1, 1), -math.log(2.0)),
    )
    windows = windows_of([(0.4, 0.4)])
    of_spans = 10 * 0.3 + 0.5
    focal = 0.25 * 0.0625 * -math.log(0.75) - 0.75 * 0.5625 * -math.log(0.25)
    of_class = {"sdet": -0.5, "prob": -0.75, "additive": -0.75 - 1 / 3, "focal": focal}
    for kind, value in of_class.items():
        found = float(matcher().cost(heads, windows, kind))
        assert found == pytest.approx(of_spans + 5 * value, abs=1e-4), kind
    # 0.75^0.8 (1/3)^0.2 = 0.637727, and mu = 2: -0.75 - 2/3
    assert float(matcher(match={"alpha": 0.8}).cost(heads, windows, "sdet")) == pytest.approx(
        of_spans - 5 * 0.637727, abs=1e-4
    )
    assert float(matcher(match={"mu": 2.0}).cost(heads, windows, "additive")) == pytest.approx(
        of_spans - 5 * (0.75 + 2 / 3), abs=1e-4
    )


def test_matching_by_hand() -> None:
    # Equal scores: layer 0 has the first query on window 1, the last on window 0; layer 1 swapped.
    spans = [[0.9, 0.1], [0.5, 0.1], [0.2, 0.1]]
    heads = Heads(
        torch.zeros(2, 1, 3), torch.tensor([[spans], [spans[::-1]]]), torch.zeros(2, 1, 3)
    )
    found = matcher()(heads, windows_of([(0.2, 0.1), (0.9, 0.1)]), "sdet", None)
    assert found.dtype == torch.int64
    assert found.tolist() == [[[1, -1, 0]], [[0, -1, 1]]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    queries=st.integers(1, 6),
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=3),
    kind=st.sampled_from(KINDS),
    data=st.data(),
)
def test_matching_is_the_cheapest_of_all_permutations(
    seed: int, queries: int, counts: list[int], kind: str, data: st.DataObject
) -> None:
    heads = random_heads(seed, 2, len(counts), queries)
    windows = random_windows(seed, counts)
    flags = st.lists(st.booleans(), min_size=queries, max_size=queries)
    used = torch.tensor([data.draw(flags) for _ in counts])
    found = matcher()(heads, windows, kind, used)
    assert heads.iou_logits is not None
    for layer in range(2):
        for sample, count in enumerate(counts):
            allowed = [q for q in range(queries) if used[sample, q]]
            pairs = paired(found[layer, sample])
            assert len(pairs) == min(len(allowed), count)
            assert len({window for _, window in pairs}) == len(pairs)
            assert {query for query, _ in pairs} <= set(allowed)
            if not pairs:
                continue
            where = (layer, sample)
            cost = [
                [
                    plain_cost(
                        heads.spans_cxw[where][q].tolist(),
                        windows.spans_cxw[sample, g].tolist(),
                        float(heads.logits[where][q]),
                        float(heads.iou_logits[where][q]),
                        kind,
                    )
                    for g in range(count)
                ]
                for q in allowed
            ]
            total = sum(cost[allowed.index(q)][g] for q, g in pairs)
            assert total == pytest.approx(cheapest(cost), abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), count=st.integers(1, 8))
def test_the_order_of_windows_does_not_matter(seed: int, count: int) -> None:
    heads, windows = random_heads(seed, 3, 1, 5), random_windows(seed, [count])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    shuffled = PaddedWindows(windows.spans_cxw[:, order], windows.valid, windows.total)
    found, again = (matcher()(heads, w, "sdet", None) for w in (windows, shuffled))
    back = torch.where(again >= 0, order[again.clamp(min=0)], -1)
    assert torch.equal(found, back)


def test_neighbours_and_padding_do_not_matter() -> None:
    heads, windows = random_heads(0, 2, 3, 6), random_windows(0, [2, 0, 4])
    found = matcher()(heads, windows, "additive", None)
    spans = torch.cat((windows.spans_cxw, torch.full((3, 5, 2), torch.nan)), 1)
    spans[~torch.nn.functional.pad(windows.valid, (0, 5))] = torch.nan
    wider = PaddedWindows(spans, torch.nn.functional.pad(windows.valid, (0, 5)), windows.total)
    assert torch.equal(matcher()(heads, wider, "additive", None), found)
    assert heads.iou_logits is not None
    alone = Heads(heads.logits[:, :1], heads.spans_cxw[:, :1], heads.iou_logits[:, :1])
    one = PaddedWindows(windows.spans_cxw[:1], windows.valid[:1], 2)
    assert torch.equal(matcher()(alone, one, "additive", None), found[:, :1])


def test_without_windows_nothing_is_matched() -> None:
    heads = random_heads(0, 3, 2, 4)
    none = PaddedWindows(torch.zeros(2, 0, 2), torch.zeros(2, 0, dtype=torch.bool), 0)
    assert matcher()(heads, none, "sdet", None).tolist() == [[[-1] * 4] * 2] * 3


def test_costs_that_are_not_finite_are_avoided_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heads, windows = random_heads(0, 1, 1, 4), random_windows(0, [2])
    heads.logits[0, 0, :2] = torch.tensor([torch.nan, torch.inf])
    heads.spans_cxw[0, 0, 1] = torch.inf
    with caplog.at_level(logging.WARNING):
        found = matcher()(heads, windows, "sdet", torch.tensor([[True, True, True, True]]))
    assert [query for query, _ in paired(found[0, 0])] == [2, 3]
    assert "4 of 8 costs" in caplog.text
    caplog.clear()
    # A broken query is still better than an unused one, and unused ones are not reported.
    found = matcher()(heads, windows, "sdet", torch.tensor([[True, False, True, False]]))
    assert [query for query, _ in paired(found[0, 0])] == [0, 2]
    assert "2 of 8 costs" in caplog.text
    # So is one that is as wrong as a number can say: about 0.25 x 1e20 under the focal cost.
    heads.logits[0, 0, 2] = -1e20
    found = matcher()(heads, windows, "focal", torch.tensor([[False, False, True, True]]))
    assert [query for query, _ in paired(found[0, 0])] == [2, 3]


def test_no_gradient_and_no_iou_head() -> None:
    heads, windows = random_heads(0, 1, 1, 4), random_windows(0, [2])
    heads.spans_cxw.requires_grad_()
    assert not matcher()(heads, windows, "sdet", None).requires_grad
    bare = Heads(heads.logits, heads.spans_cxw, None)
    assert len(paired(matcher()(bare, windows, "prob", None)[0, 0])) == 2
    for kind in ("sdet", "additive"):
        with pytest.raises(ValueError, match="needs an IoU head"):
            matcher()(bare, windows, kind, None)
