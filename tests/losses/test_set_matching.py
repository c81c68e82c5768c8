"""Matching of all layers at once: costs by hand, and agreement with trying everything."""

from __future__ import annotations

import logging
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrmodel.losses.windows import PaddedWindows, location_costs, match_layers


def windows_of(counts: list[int], longest: int | None = None) -> PaddedWindows:
    """Windows that only the counts of matter of; garbage at padding."""
    longest = max(counts) if longest is None else longest
    valid = torch.arange(longest) < torch.tensor(counts)[:, None]
    return PaddedWindows(torch.full((*valid.shape, 2), torch.nan), valid)


def random_cost(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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


def test_location_costs_by_hand() -> None:
    # (0.4, 0.6) against (0.2, 0.6): L1 0.1 + 0.2, gIoU = IoU = 1/2; against (0.7, 0.9): L1 0.3,
    # gap 0.1 of the hull 0.5.
    windows = PaddedWindows(torch.tensor([[[0.4, 0.4], [0.8, 0.2]]]), torch.ones(1, 2) > 0)
    distance, apart = location_costs(torch.tensor([[[[0.5, 0.2]]]]), windows)
    assert distance.flatten().tolist() == pytest.approx([0.3, 0.3])
    assert apart.flatten().tolist() == pytest.approx([0.5, 1.2])


def test_matching_by_hand() -> None:
    cost = torch.tensor([[3.0, 1.0], [2.0, 2.0], [0.0, 3.0]])
    found = match_layers(torch.stack((cost, cost.flip(0)))[:, None], windows_of([2]))
    assert found.dtype == torch.int64
    assert found.tolist() == [[[1, -1, 0]], [[0, -1, 1]]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    queries=st.integers(1, 6),
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    padding=st.integers(0, 2),
)
def test_matching_is_the_cheapest_of_all_permutations(
    seed: int, queries: int, counts: list[int], padding: int
) -> None:
    longest = max(counts) + padding
    cost = random_cost(seed, 2, len(counts), queries, longest)
    windows = windows_of(counts, longest)
    noisy = cost.masked_fill(~windows.valid[:, None], torch.nan)
    found = match_layers(noisy, windows)
    for layer in range(2):
        for sample, count in enumerate(counts):
            pairs = paired(found[layer, sample])
            assert len(pairs) == min(queries, count)
            assert len({window for _, window in pairs}) == len(pairs)
            if pairs:
                own = cost[layer, sample, :, :count].tolist()
                total = sum(own[q][g] for q, g in pairs)
                assert total == pytest.approx(cheapest(own), abs=1e-4)


def test_without_windows_nothing_is_matched() -> None:
    for longest in (0, 2):
        cost, windows = torch.zeros(3, 2, 4, longest), windows_of([0, 0], longest)
        assert match_layers(cost, windows).tolist() == [[[-1] * 4] * 2] * 3


def test_costs_that_are_not_finite_are_avoided_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cost = random_cost(0, 1, 1, 4, 2)
    cost[0, 0, 0], cost[0, 0, 1] = torch.nan, torch.inf
    with caplog.at_level(logging.WARNING):
        found = match_layers(cost, windows_of([2]))
    assert [query for query, _ in paired(found[0, 0])] == [2, 3]
    assert "4 of 8 costs" in caplog.text
    # A query whose costs are broken is still better than none.
    assert len(paired(match_layers(cost[:, :, :2], windows_of([2]))[0, 0])) == 2
    caplog.clear()
    match_layers(random_cost(0, 1, 1, 4, 3), windows_of([2], 3))
    assert caplog.text == ""


def test_no_gradient() -> None:
    assert not match_layers(
        random_cost(0, 1, 1, 4, 2).requires_grad_(), windows_of([2])
    ).requires_grad
