"""What every registered evaluation protocol must do; a new one is checked without an edit here."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from mrmodel.components import PROTOCOLS
from mrmodel.errors import DataError
from mrmodel.evaluate.protocols import Protocol
from mrmodel.evaluate.run import get_protocol
from mrmodel.predict.postprocess import PostprocessSettings

Rows = list[dict[str, Any]]

pytestmark = pytest.mark.parametrize("name", list(PROTOCOLS))
MODES = pytest.mark.parametrize("mode", ["official", "clean"])

N_CLIPS, CLIP_LEN_S = 30, 2.0


def annotations(n_queries: int = 9) -> Rows:
    """One moment a query, every clip rated by one rater: 4 inside of the moment, 0 outside."""
    rng = np.random.default_rng(0)
    rows: Rows = []
    for qid in range(n_queries):
        start = int(rng.integers(0, N_CLIPS - 12))
        stop = start + int(rng.integers(5, 12))
        inside = [[4.0 if start <= clip < stop else 0.0] for clip in range(N_CLIPS)]
        rows.append(
            {
                "qid": qid,
                "query": f"query {qid}",
                "vid": f"video{qid // 2}",
                "duration": N_CLIPS * CLIP_LEN_S,
                "domain": "abc"[qid % 3],
                "relevant_windows": [[start * CLIP_LEN_S, stop * CLIP_LEN_S]],
                "relevant_clip_ids": list(range(N_CLIPS)),
                "saliency_scores": inside,
            }
        )
    return rows


def perfect(truth: Rows) -> Rows:
    return [
        {
            "qid": row["qid"],
            "pred_relevant_windows": [[*row["relevant_windows"][0], 0.9], [0.0, 2.0, 0.1]],
            "pred_saliency_scores": [rating for (rating,) in row["saliency_scores"]],
        }
        for row in truth
    ]


def random_guesses(truth: Rows, seed: int = 1) -> Rows:
    rng = np.random.default_rng(seed)
    rows: Rows = []
    for row in truth:
        starts = rng.uniform(0, 40, 10)
        windows = np.stack([starts, starts + rng.uniform(2, 20, 10), rng.random(10)], axis=1)
        saliency = rng.normal(size=N_CLIPS)
        rows.append(
            {
                "qid": row["qid"],
                "pred_relevant_windows": windows.tolist(),
                "pred_saliency_scores": saliency.tolist(),
            }
        )
    return rows


@pytest.fixture
def protocol(name: str) -> Protocol:
    return get_protocol(name)


@MODES
def test_a_perfect_prediction_has_the_best_headline(protocol: Protocol, mode: Any) -> None:
    truth = annotations()
    metrics = protocol.evaluate(truth, perfect(truth), mode)
    assert protocol.main_metrics(metrics)[protocol.headline] == protocol.best


@MODES
def test_guesses_lie_between_nothing_and_the_best(protocol: Protocol, mode: Any) -> None:
    truth = annotations()
    metrics = protocol.evaluate(truth, random_guesses(truth), mode)
    metrics = protocol.main_metrics(metrics)
    for value in metrics.values():
        assert value is None or 0.0 <= value <= protocol.best
    assert 0.0 <= (metrics[protocol.headline] or 0.0) < protocol.best


def test_predicting_nothing_is_zero_in_clean_mode(protocol: Protocol) -> None:
    truth = annotations()
    empty = [
        {
            "qid": row["qid"],
            "pred_relevant_windows": [],
            "pred_saliency_scores": [],
        }
        for row in truth
    ]
    metrics = protocol.main_metrics(protocol.evaluate(truth, empty, "clean"))
    assert metrics[protocol.headline] == 0.0
    assert set(metrics.values()) <= {0.0, None}
    with pytest.raises(DataError, match="is empty, which only mode 'clean' scores"):
        protocol.evaluate(truth, empty, "official")


@MODES
def test_metrics_are_json_and_the_same_again(protocol: Protocol, mode: Any) -> None:
    truth = annotations()
    guesses = random_guesses(truth)
    first = json.dumps(protocol.evaluate(truth, guesses, mode), allow_nan=False)
    assert json.dumps(protocol.evaluate(truth, guesses, mode), allow_nan=False) == first
    turned = protocol.evaluate(truth, guesses[::-1], mode)
    assert json.dumps(turned, allow_nan=False) == first


@MODES
def test_rows_are_left_alone(protocol: Protocol, mode: Any) -> None:
    truth = annotations()
    guesses = random_guesses(truth)
    before = copy.deepcopy((truth, guesses))
    protocol.evaluate(truth, guesses, mode)
    assert (truth, guesses) == before


@MODES
def test_queries_average_to_the_headline(protocol: Protocol, mode: Any) -> None:
    truth = annotations()
    scores = protocol.score(truth, random_guesses(truth), mode)
    values = scores.per_query.values[protocol.headline]
    assert values.shape == (len(truth),)
    headline = protocol.main_metrics(scores.metrics)[protocol.headline]
    assert np.nanmean(values) == pytest.approx(headline, abs=0.0051)
    assert scores.per_query.qids == [row["qid"] for row in truth]
    assert scores.per_query.vids == [row["vid"] for row in truth]
    assert set(scores.per_query.as_json()) == {str(row["qid"]) for row in truth}


def test_the_protocol_says_how_windows_are_finished(protocol: Protocol, name: str) -> None:
    assert protocol.name == name
    settings = protocol.official_postprocess(CLIP_LEN_S)
    assert isinstance(settings, PostprocessSettings)
    assert settings.official
