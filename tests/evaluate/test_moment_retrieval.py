"""Average precision and recall of windows against a plain loop over queries and thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.evaluate.moment_retrieval import (
    AP_THRESHOLDS,
    MomentArrays,
    average_precision,
    best_iou,
    by_score,
    pairwise_iou,
)
from mrmodel.evaluate.ragged import Ragged

Window = tuple[float, float]


def plain_iou(first: Window, second: Window) -> float:
    overlap = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    union = (first[1] - first[0]) + (second[1] - second[0]) - overlap
    return overlap / union if overlap > 0 else 0.0


def plain_average_precision(ranked: list[Window], truth: list[Window], threshold: float) -> float:
    free = set(range(len(truth)))
    hits = []
    for window in ranked:
        reaching = [(plain_iou(window, truth[g]), g) for g in free]
        reaching = [pair for pair in reaching if pair[0] >= threshold]
        if reaching:
            free.remove(max(reaching)[1])
        hits.append(bool(reaching))
    area = 0.0
    for rank, hit in enumerate(hits):
        if hit:
            later = [sum(hits[: end + 1]) / (end + 1) for end in range(rank, len(hits))]
            area += max(later) / len(truth)
    return area


span = st.tuples(st.integers(0, 12), st.integers(0, 6)).map(lambda p: (float(p[0]), float(sum(p))))
query = st.tuples(
    st.lists(span, max_size=12),
    st.lists(span.filter(lambda w: w[1] > w[0]), min_size=1, max_size=5),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(query, min_size=1, max_size=6))
def test_average_precision_equals_a_plain_loop(queries: list[tuple[list, list]]) -> None:
    ours = average_precision(arrays_of(queries), AP_THRESHOLDS)
    expected = [
        [plain_average_precision(ranked, truth, level) for level in AP_THRESHOLDS]
        for ranked, truth in queries
    ]
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(query, min_size=1, max_size=6))
def test_best_iou_equals_a_plain_loop(queries: list[tuple[list, list]]) -> None:
    arrays = arrays_of(queries)
    ours = best_iou(arrays.ranked, arrays.truth, arrays.truth_valid)
    for row, (ranked, truth) in zip(ours, queries, strict=True):
        expected = [max(plain_iou(window, other) for other in truth) for window in ranked]
        np.testing.assert_allclose(row[: len(ranked)], expected, atol=1e-12)
        assert not row[len(ranked) :].any()


def test_length_groups_keep_border_lengths_and_drop_queries_without_windows() -> None:
    queries = [
        ([(0.0, 10.0)], [(0.0, 10.0), (20.0, 31.0)]),
        ([(0.0, 5.0)], [(0.0, 30.0)]),
        ([(0.0, 5.0)], [(0.0, 151.0)]),
    ]
    arrays = arrays_of(queries)
    short_rows, short = arrays.within(0, 10)
    middle_rows, middle = arrays.within(10, 30)
    long_rows, long = arrays.within(30, 150)
    assert (short_rows.tolist(), middle_rows.tolist(), long_rows.tolist()) == ([0], [0, 1], [])
    assert average_precision(short, AP_THRESHOLDS)[0, 0] == 1.0
    # The right answer for the short window is a false positive among the middle ones.
    assert average_precision(middle, AP_THRESHOLDS)[0, 0] == 0.0
    assert average_precision(long, AP_THRESHOLDS).shape == (0, 10)


@pytest.mark.parametrize(
    ("first", "second"),
    [((4, 4), (4, 4)), ((20, 10), (0, 10)), ((20, 10), (12, 18)), ((0, 2), (2, 4))],
)
def test_windows_that_share_nothing_have_iou_zero(first: Window, second: Window) -> None:
    table = pairwise_iou(np.array([[first]], dtype=float), np.array([[second]], dtype=float))
    assert table.tolist() == [[[0.0]]]


def test_ranking_keeps_the_order_of_equal_scores() -> None:
    values = np.array([[1, 2, 0.5], [3, 4, 0.9], [5, 6, 0.5], [7, 8, 0.1], [9, 10, 0.1]])
    ranked = by_score(Ragged(values, np.array([3, 2])))
    assert ranked.values[:, 0].tolist() == [3, 1, 5, 7, 9]


def arrays_of(queries: list[tuple[list, list]]) -> MomentArrays:
    ranked = ragged([ranked for ranked, _ in queries])
    truth = ragged([truth for _, truth in queries])
    return MomentArrays(ranked.padded(), ranked.padded(), truth.padded(), truth.valid())


def ragged(lists: list[list[Window]]) -> Ragged:
    flat = [window for windows in lists for window in windows]
    return Ragged(np.array(flat, dtype=float).reshape(-1, 2), np.array(list(map(len, lists))))
