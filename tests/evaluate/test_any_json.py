"""Whatever JSON stands in a field, the evaluators give metrics or a DataError, nothing else."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.components import PROTOCOLS
from mrmodel.errors import DataError
from mrmodel.evaluate.run import evaluate

from .rows_for_tests import random_rows

TRUTH, GUESSES = random_rows(4, seed=0)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from([10**400, 1e308, -1e308])
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=12,
)
numbers = st.floats(-1e3, 1e3) | st.sampled_from([0, 10**18, 1e300, -1e300])
plausible = (
    st.lists(numbers, max_size=4)
    | st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=3)
    | st.lists(st.lists(numbers, min_size=3, max_size=3), max_size=3)
)
fields = sorted({key for row in TRUTH + GUESSES for key in row} | {"domain"})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["official", "clean"])
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    side=st.integers(0, 1),
    row=st.integers(0, 3),
    field=st.sampled_from(fields),
    value=anything | plausible | st.just(...),
)
def test_metrics_or_a_data_error(
    protocol: str, mode: str, side: int, row: int, field: str, value: object
) -> None:
    files = copy.deepcopy((TRUTH, GUESSES))
    if value is ...:
        files[side][row].pop(field, None)
    else:
        files[side][row][field] = value
    try:
        metrics = evaluate(*files, protocol, mode)  # type: ignore[arg-type]
    except DataError as error:
        message = str(error)
    else:
        message = ""
        json.dumps(metrics, allow_nan=False)
    assert "\n" not in message
    assert len(message) < 300
