"""Fields of rows: what is refused, and in which words."""

from __future__ import annotations

import copy
import math
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrmodel.errors import DataError
from mrmodel.evaluate.qvhighlights import QVHighlights
from mrmodel.evaluate.ragged import Ragged, has_field, number_lists
from mrmodel.evaluate.rows import RowFile

GOOD_TRUTH = {
    "qid": 7,
    "vid": "v",
    "duration": 20,
    "relevant_windows": [[0, 4]],
    "relevant_clip_ids": [0, 1],
    "saliency_scores": [[1, 2, 3], [4, 4, 4]],
}
GOOD_GUESS = {
    "qid": 7,
    "pred_relevant_windows": [[0.0, 4.0, 0.9]],
    "pred_saliency_scores": [0.1] * 10,
}
MISSING = object()

BAD_TRUTH = [
    ("duration", MISSING, "has no 'duration'"),
    ("duration", "20", "'duration' must be seconds in (0, 86400], found '20'"),
    ("duration", 0, "'duration' must be seconds"),
    ("duration", math.nan, "'duration' must be seconds"),
    ("duration", True, "'duration' must be seconds"),
    ("duration", 1e9, "'duration' must be seconds"),
    ("duration", 1, "shorter than a clip"),
    ("relevant_windows", MISSING, "has no 'relevant_windows'"),
    ("relevant_windows", None, "'relevant_windows' must be a list, found None"),
    ("relevant_windows", [], "'relevant_windows' is empty"),
    ("relevant_windows", [[4, 0]], "ends before it starts: [4, 0]"),
    ("relevant_windows", [0, 4], "must be [start, end], found 0"),
    ("relevant_windows", [[0, 4, 1]], "must be [start, end], found [0, 4, 1]"),
    ("relevant_windows", [[0, None]], "must hold finite numbers, found None"),
    ("relevant_windows", [[0, math.inf]], "must hold finite numbers, found inf"),
    ("relevant_clip_ids", MISSING, "has no 'relevant_clip_ids'"),
    ("relevant_clip_ids", [0], "1 'relevant_clip_ids' but 2 'saliency_scores'"),
    ("relevant_clip_ids", [0, -1], "must be clip numbers from 0, found -1"),
    ("relevant_clip_ids", [0, 1.5], "must be clip numbers from 0, found 1.5"),
    ("relevant_clip_ids", [0, 10], "clip 10 of 'relevant_clip_ids' is beyond the video's 10 clips"),
    ("saliency_scores", [1, 2], "must be a list of 1 ratings, found 1"),
    ("saliency_scores", [[1, 2, 3], [1, 2]], "must be a list of 3 ratings, found [1, 2]"),
    ("saliency_scores", [[], []], "must be a list of 1 ratings, found []"),
    ("saliency_scores", [[1, 2, 3], [1, 2, "4"]], "must hold finite numbers, found '4'"),
]
BAD_GUESSES = [
    ("pred_relevant_windows", [], "'pred_relevant_windows' is empty"),
    ("pred_relevant_windows", {"a": 1}, "must be a list"),
    ("pred_relevant_windows", [[0, 4]], "must be [start, end, score], found [0, 4]"),
    ("pred_relevant_windows", [[0, 4, True]], "must hold finite numbers, found True"),
    ("pred_relevant_windows", [[0, 4, 10**400]], "must hold finite numbers, found 1000"),
    ("pred_relevant_windows", [[0, math.nan, 1]], "must hold finite numbers, found nan"),
    ("pred_saliency_scores", [], "'pred_saliency_scores' is empty"),
    ("pred_saliency_scores", 3, "'pred_saliency_scores' must be a list, found 3"),
    ("pred_saliency_scores", [0.1, [0.2]], "must hold finite numbers, found [0.2]"),
    ("pred_saliency_scores", [0.1, -math.inf], "must hold finite numbers, found -inf"),
]


@pytest.mark.parametrize(("key", "value", "rule"), BAD_TRUTH)
def test_bad_annotations_are_named(key: str, value: object, rule: str) -> None:
    error = refusal([changed(GOOD_TRUTH, key, value)], [GOOD_GUESS])
    assert rule in error
    assert error.startswith("qid 7: ")
    assert len(error) < 200


@pytest.mark.parametrize(("key", "value", "rule"), BAD_GUESSES)
def test_bad_predictions_are_named(key: str, value: object, rule: str) -> None:
    error = refusal([GOOD_TRUTH], [changed(GOOD_GUESS, key, value)])
    assert rule in error
    assert error.startswith("qid 7: ")
    assert len(error) < 200


def test_the_row_at_fault_is_found_among_others() -> None:
    truth = [GOOD_TRUTH | {"qid": qid} for qid in range(20)]
    guesses = [copy.deepcopy(GOOD_GUESS) | {"qid": qid} for qid in range(20)]
    guesses[13]["pred_saliency_scores"][9] = math.nan  # type: ignore[index]
    assert refusal(truth, guesses).startswith("qid 13: ")
    guesses[11]["pred_relevant_windows"] = [[0, 1, 2], [0, 1, math.inf]]
    assert refusal(truth, guesses).startswith("qid 11: ")


def test_a_field_is_in_all_rows_or_in_none() -> None:
    rows = RowFile([{"qid": 1, "a": 0}, {"qid": 2}])
    with pytest.raises(DataError, match="qid 2: has no 'a', which other rows have"):
        has_field(rows, "a")
    assert not has_field(rows, "b")


def test_a_submission_with_nothing_to_score() -> None:
    assert "has neither" in refusal([GOOD_TRUTH], [{"qid": 7}])


def test_annotations_without_any_rating() -> None:
    truth = GOOD_TRUTH | {"relevant_clip_ids": [], "saliency_scores": []}
    assert "no row has a rated clip" in refusal([truth], [GOOD_GUESS])


def test_tuples_are_lists_too() -> None:
    truth = GOOD_TRUTH | {"relevant_windows": ((0, 4),), "saliency_scores": ((1, 2, 3), (4, 4, 4))}
    guess = GOOD_GUESS | {"pred_relevant_windows": ((0.0, 4.0, 0.9),)}
    expected = QVHighlights().evaluate([GOOD_TRUTH], [GOOD_GUESS])
    assert QVHighlights().evaluate([truth], [guess]) == expected


lists = st.lists(st.lists(st.floats(-5, 5), max_size=6), min_size=1, max_size=8)


@given(lists, st.integers(0, 7))
def test_ragged_lists_behave_like_lists(values: list[list[float]], limit: int) -> None:
    ragged = number_lists(RowFile([{"qid": i, "x": v} for i, v in enumerate(values)]), "x")
    assert unpack(ragged) == values
    assert unpack(ragged.head(limit)) == [row[:limit] for row in values]
    backwards = np.arange(len(values))[::-1]
    assert unpack(ragged.lists(backwards)) == values[::-1]
    owners = np.arange(len(values)) % 2
    merged = unpack(ragged.merge(owners, 2))
    assert merged == [list(chain(*values[::2])), list(chain(*values[1::2]))]
    padded = ragged.padded(9.0)
    assert [
        row[valid].tolist() for row, valid in zip(padded, ragged.valid(), strict=True)
    ] == values
    assert (padded[~ragged.valid()] == 9.0).all()


def unpack(ragged: Ragged) -> list[list[float]]:
    return [part.tolist() for part in np.split(ragged.values, np.cumsum(ragged.counts)[:-1])]


def changed(row: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    copied = copy.deepcopy(row)
    if value is MISSING:
        del copied[key]
    else:
        copied[key] = value
    return copied


def refusal(truth: list[dict[str, Any]], guesses: list[dict[str, Any]]) -> str:
    with pytest.raises(DataError) as caught:
        QVHighlights().evaluate(truth, guesses)
    return str(caught.value)
