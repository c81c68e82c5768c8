"""Modes, per-query figures and data-set particulars of the protocols."""

from __future__ import annotations

import copy
import json
import logging
import math

import numpy as np
import pytest

from mrmodel.components import PROTOCOLS
from mrmodel.errors import DataError, UnknownNameError
from mrmodel.evaluate.charades import Charades, Tacos
from mrmodel.evaluate.highlight_sets import TVSum, YouTubeHighlights
from mrmodel.evaluate.qvhighlights import QVHighlights
from mrmodel.evaluate.run import evaluate, get_protocol

from .rows_for_tests import Rows, random_rows

TRUTH = {
    "qid": 1,
    "vid": "v",
    "duration": 60,
    "relevant_windows": [[40, 60]],
    "relevant_clip_ids": [20],
    "saliency_scores": [[4, 4, 4]],
}


def guess(windows: list[list[float]]) -> dict[str, object]:
    return {"qid": 1, "pred_relevant_windows": windows}


def test_official_recall_takes_the_first_window_and_clean_the_best_scored() -> None:
    rows = [guess([[0, 5, 0.1], [40, 60, 0.9]])]
    official = QVHighlights().evaluate([TRUTH], rows)["brief"]
    clean = QVHighlights().evaluate([TRUTH], rows, "clean")["brief"]
    assert (official["MR-full-R1@0.5"], clean["MR-full-R1@0.5"]) == (0.0, 100.0)
    assert official["MR-full-mAP"] == clean["MR-full-mAP"] == 100.0


def test_official_cuts_to_ten_windows_before_sorting_and_clean_after() -> None:
    rows = [guess([[0, 5, 0.1]] * 10 + [[40, 60, 0.9]])]
    assert QVHighlights().evaluate([TRUTH], rows)["brief"]["MR-full-mAP"] == 0.0
    assert QVHighlights().evaluate([TRUTH], rows, "clean")["brief"]["MR-full-mAP"] == 100.0


def test_clean_holds_windows_to_the_video() -> None:
    rows = [guess([[40, 120, 0.9]])]
    assert QVHighlights().evaluate([TRUTH], rows)["brief"]["MR-full-R1@0.5"] == 0.0
    assert QVHighlights().evaluate([TRUTH], rows, "clean")["brief"]["MR-full-R1@0.5"] == 100.0


def test_clean_counts_very_long_moments_as_long() -> None:
    truth = TRUTH | {"duration": 400, "relevant_windows": [[0, 200]]}
    rows = [guess([[0, 200, 0.9]])]
    assert QVHighlights().evaluate([truth], rows)["brief"]["MR-long-mAP"] is None
    assert QVHighlights().evaluate([truth], rows, "clean")["brief"]["MR-long-mAP"] == 100.0


def test_clean_refuses_repeats_and_inverted_windows(caplog: pytest.LogCaptureFixture) -> None:
    rows = [guess([[40, 60, 0.9]]), guess([[60, 40, 0.9]])]
    with caplog.at_level(logging.WARNING):
        assert QVHighlights().evaluate([TRUTH], rows)["brief"]["MR-full-R1@0.5"] == 0.0
    assert "1 prediction rows repeat a qid" in caplog.text
    with pytest.raises(DataError, match="repeats the qid"):
        QVHighlights().evaluate([TRUTH], rows, "clean")
    with pytest.raises(DataError, match="ends before it starts"):
        QVHighlights().evaluate([TRUTH], rows[1:], "clean")


def test_repeated_rows_join_their_windows_in_official_mode() -> None:
    rows = [guess([[40, 60, 0.5]]), guess([[0, 5, 0.9]])]
    brief = QVHighlights().evaluate([TRUTH], rows)["brief"]
    # The second row's window ranks first, so the right one is at rank 2.
    assert (brief["MR-full-mAP"], brief["MR-full-R1@0.5"]) == (50.0, 0.0)


@pytest.mark.parametrize("mode", ["official", "clean"])
@pytest.mark.parametrize("coarse", [False, True])
def test_per_query_values_average_to_the_metrics(mode: str, coarse: bool) -> None:
    truth, guesses = random_rows(40, seed=5, coarse=coarse)
    for name in ("qvhighlights", "charades"):
        scores = get_protocol(name).score(truth, guesses, mode)  # type: ignore[arg-type]
        metrics = get_protocol(name).main_metrics(scores.metrics)
        assert set(metrics) <= set(scores.per_query.values)
        for figure, value in metrics.items():
            mean = np.nanmean(scores.per_query.values[figure])
            assert value == pytest.approx(mean, abs=0.0051)
        assert scores.per_query.qids == [row["qid"] for row in truth]
        assert scores.per_query.vids == [row["vid"] for row in truth]


def test_the_order_of_prediction_rows_does_not_matter() -> None:
    truth, guesses = random_rows(25, seed=1)
    for name in ("qvhighlights", "charades"):
        assert evaluate(truth, guesses, name) == evaluate(truth, guesses[::-1], name)


def test_metrics_are_json_even_with_empty_length_groups() -> None:
    metrics = QVHighlights().evaluate([TRUTH], [guess([[40, 60, 0.9]])])
    json.dumps(metrics, allow_nan=False)
    assert metrics["short"]["MR-mAP"]["average"] is None
    assert metrics["short"]["MR-R1"]["0.5"] is None
    assert metrics["brief"]["MR-short-mAP"] is None
    assert set(metrics) == {"brief", "full", "long", "middle", "short"}


def test_common_queries_only() -> None:
    truth, guesses = random_rows(12, seed=2)
    some = [row for row in guesses if row["qid"] < 8]
    common = QVHighlights().evaluate(truth[4:], some, allow_missing=True)
    same = QVHighlights().evaluate(truth[4:8], [row for row in some if row["qid"] >= 4])
    assert common == same


def test_charades_recall_at_five() -> None:
    windows = [[0.0, 1.0, 0.9]] * 4 + [[40.0, 60.0, 0.1]]
    metrics = Charades().evaluate([TRUTH], [guess(windows)])
    assert (metrics["R1"]["0.7"], metrics["R5"]["0.7"]) == (0.0, 100.0)
    late = [[0.0, 1.0, 0.9]] * 5 + [[40.0, 60.0, 0.1]]
    assert Charades().evaluate([TRUTH], [guess(late)])["R5"]["0.3"] == 0.0


def test_domains_average_over_their_means() -> None:
    truth: Rows = [
        {"qid": video, "domain": domain, "saliency_scores": [[1], [0], [0]]}
        for video, domain in enumerate(["dog", "dog", "ski"])
    ]
    best, worst = [9.0, 1.0, 0.0], [0.0, 1.0, 9.0]
    guesses = [
        {"qid": video, "pred_saliency_scores": scores}
        for video, scores in enumerate([best, best, worst])
    ]
    metrics = YouTubeHighlights().evaluate(truth, guesses)
    domains = metrics["mAP_per_domain"]
    assert (domains["dog"], list(domains)) == (1.0, ["dog", "ski"])
    assert metrics["mAP_domain_average"] == pytest.approx((1.0 + domains["ski"]) / 2, abs=1e-5)
    assert metrics["mAP"] == pytest.approx((2.0 + domains["ski"]) / 3, abs=1e-5)
    assert YouTubeHighlights().main_metrics(metrics)["mAP dog"] == 1.0


def test_domains_must_be_complete_and_names() -> None:
    rows: Rows = [{"qid": q, "domain": "a", "saliency_scores": [[1], [0]]} for q in range(2)]
    guesses = [{"qid": q, "pred_saliency_scores": [1.0, 0.0]} for q in range(2)]
    for change, rule in (({"domain": 5}, "'domain' must be a string"), ({}, "has no 'domain'")):
        broken = copy.deepcopy(rows)
        del broken[1]["domain"]
        broken[1] |= change
        with pytest.raises(DataError, match=rule):
            TVSum().evaluate(broken, guesses)


def test_videos_without_highlights_leave_a_null() -> None:
    rows: Rows = [{"qid": 0, "saliency_scores": [[0], [0]]}]
    metrics = YouTubeHighlights().evaluate(rows, [{"qid": 0, "pred_saliency_scores": [1.0, 0.0]}])
    assert metrics == {"mAP": None, "mAP_per_video": [None]}


def test_short_score_lists_leave_clips_out_or_rank_them_last() -> None:
    rows: Rows = [{"qid": 0, "saliency_scores": [[0], [0], [1]]}]
    guesses = [{"qid": 0, "pred_saliency_scores": [1.0, 2.0]}]
    assert YouTubeHighlights().evaluate(rows, guesses)["mAP"] == 0.0
    assert YouTubeHighlights().evaluate(rows, guesses, "clean")["mAP"] > 0.0


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"saliency_scores": []}, "'saliency_scores' is empty"),
        ({"saliency_scores": [[1, 0], [0, 1]]}, "must hold one label a clip, found 2"),
        ({"relevant_clip_ids": [3, 4]}, "every clip is rated"),
        ({"relevant_clip_ids": None}, "every clip is rated"),
    ],
)
def test_highlight_sets_need_every_clip_rated(change: dict, rule: str) -> None:
    row = {"qid": 0, "saliency_scores": [[1], [0]]} | change
    with pytest.raises(DataError, match=rule):
        YouTubeHighlights().evaluate([row], [{"qid": 0, "pred_saliency_scores": [1.0, 0.0]}])


def test_published_window_finishing() -> None:
    assert QVHighlights().official_postprocess(2.0).clamp_s == (0.0, 150.0)
    assert Charades().official_postprocess(1.0).clamp_s == (0.0, 150.0)
    assert Charades().official_postprocess(1 / 6).clamp_s == (0.0, 360.0)
    assert Tacos().official_postprocess(2.0).clamp_s is None
    for protocol in PROTOCOLS:
        assert get_protocol(protocol).official_postprocess(2.0).official


def test_unknown_protocols_name_their_neighbours() -> None:
    with pytest.raises(UnknownNameError, match="qvhighlights"):
        evaluate([TRUTH], [guess([[0, 1, 1]])], "qvhighlight")


def test_no_nan_leaves_the_evaluator() -> None:
    truth, guesses = random_rows(5, seed=8)
    for row in guesses:
        row["pred_relevant_windows"] = [[4.0, 4.0, 0.5]]
    for row in truth:
        row["relevant_windows"] = [[4.0, 4.0]]
    metrics = QVHighlights().evaluate(truth, guesses)
    # The published script divides 0 by 0 here, and takes that for a hit.
    assert metrics["brief"]["MR-full-mAP"] == 100.0
    assert not math.isnan(metrics["brief"]["HL-min-Fair-mAP"])
