"""The QVHighlights evaluator against recorded numbers of the published one."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrmodel.cli.main import main
from mrmodel.evaluate.rows import read_rows
from mrmodel.evaluate.run import evaluate, score_files
from mrmodel.files import write_text

from .folder import GOLDEN, case_folders, load, load_lines

KIND = "evaluator"
CASES = case_folders(KIND)
Rows = list[dict[str, Any]]


def matches_all_qids(case: Path) -> bool:
    index = GOLDEN / KIND / "index.json"
    entries = load(index)["cases"] if index.exists() else []
    return {entry["case"]: entry["match_number"] for entry in entries}.get(case.name, True)


def test_the_folder_has_cases() -> None:
    assert CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_figure_is_equal_to_the_last_digit(case: Path) -> None:
    scores = score_files(
        case / "gt.jsonl",
        case / "preds.jsonl",
        "qvhighlights",
        allow_missing=not matches_all_qids(case),
    )
    assert scores.metrics == load(case / "metrics.json")


@pytest.mark.parametrize(
    "case", [case for case in CASES if (case / "per_query.json").exists()], ids=lambda c: c.name
)
def test_every_query_is_equal(case: Path) -> None:
    scores = score_files(
        case / "gt.jsonl",
        case / "preds.jsonl",
        "qvhighlights",
        allow_missing=not matches_all_qids(case),
    )
    ours, expected = scores.per_query.as_json(), load(case / "per_query.json")
    assert set(ours) == set(expected)
    for qid, figures in expected.items():
        for name, values in figures.items():
            np.testing.assert_allclose(ours[qid][name], values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_strict_run_needs_the_same_qids(
    case: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = [case / "gt.jsonl", case / "preds.jsonl"]
    code = run_cli(monkeypatch, *files, tmp_path / "metrics.json")
    assert code == (0 if matches_all_qids(case) else 2)
    if code == 0:
        assert load(tmp_path / "metrics.json") == load(case / "metrics.json")


# The changes that the folder's README describes, each on the six queries of failure_inputs.


def drop_last_prediction(truth: Rows, guesses: Rows) -> None:
    guesses.pop()


def no_window_predicted(truth: Rows, guesses: Rows) -> None:
    guesses[0]["pred_relevant_windows"] = []


def no_window_annotated(truth: Rows, guesses: Rows) -> None:
    truth[0]["relevant_windows"] = []


def only_middle_windows(truth: Rows, guesses: Rows) -> None:
    for row in truth:
        row["relevant_windows"] = [[0, 20]]


def clip_75_of_75(truth: Rows, guesses: Rows) -> None:
    row = next(row for row in truth if row["duration"] == 150)
    row["relevant_clip_ids"].append(75)
    row["saliency_scores"].append([1, 1, 1])


def nan_score(truth: Rows, guesses: Rows) -> None:
    guesses[0]["pred_saliency_scores"][0] = float("nan")


def inverted_top(truth: Rows, guesses: Rows) -> None:
    guesses[0]["pred_relevant_windows"][0][:2] = [20, 10]


def twice_submitted(truth: Rows, guesses: Rows) -> None:
    guesses.append(copy.deepcopy(guesses[0]))


def zero_length_top(truth: Rows, guesses: Rows) -> None:
    top = guesses[0]["pred_relevant_windows"][0]
    top[1] = top[0]


def nothing_submitted(truth: Rows, guesses: Rows) -> None:
    guesses.clear()


CHANGES: dict[str, Callable[[Rows, Rows], None]] = {
    "qid_mismatch_strict": drop_last_prediction,
    "empty_prediction_list": no_window_predicted,
    "gt_without_window": no_window_annotated,
    "empty_length_bucket": only_middle_windows,
    "clip_id_beyond_duration": clip_75_of_75,
    "nan_saliency": nan_score,
    "inverted_window": inverted_top,
    "duplicate_qid_in_submission": twice_submitted,
    "zero_length_top1": zero_length_top,
    "empty_submission": nothing_submitted,
}

# What the one-line error says where the published script stops with a traceback.
MESSAGES = {
    "qid_mismatch_strict": "has no prediction",
    "empty_prediction_list": "'pred_relevant_windows' is empty",
    "gt_without_window": "'relevant_windows' is empty",
    "clip_id_beyond_duration": "clip 75 of 'relevant_clip_ids' is beyond the video's 75 clips",
    "nan_saliency": "'pred_saliency_scores' must hold finite numbers, found nan",
    "empty_submission": "holds no row",
}

FAILURES = load(GOLDEN / KIND / "failure_cases.json") if CASES else []


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure["case"])
def test_bad_input_gives_the_recorded_numbers_or_a_clear_error(
    failure: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = failure["case"]
    truth = load_lines(GOLDEN / KIND / "failure_inputs_gt.jsonl")
    guesses = load_lines(GOLDEN / KIND / "failure_inputs_preds.jsonl")
    CHANGES[name](truth, guesses)
    files = tmp_path / "gt.jsonl", tmp_path / "preds.jsonl"
    for path, rows in zip(files, (truth, guesses), strict=True):
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    code = run_cli(monkeypatch, *files, tmp_path / "metrics.json")
    error = capsys.readouterr().err
    if failure["result"] == "ok":
        assert code == 0
        assert load(tmp_path / "metrics.json")["brief"] == failure["brief"]
    elif name == "empty_length_bucket":
        brief = load(tmp_path / "metrics.json")["brief"]
        assert [brief[f"MR-{length}-mAP"] for length in ("short", "long")] == [None, None]
        assert brief["MR-middle-mAP"] == brief["MR-full-mAP"]
    else:
        assert code == 2
        assert len(error.strip().splitlines()) == 1
        assert MESSAGES[name] in error
        at_fault = files[0] if "gt" in name or "clip" in name else files[1]
        assert str(at_fault) in error
        assert not (tmp_path / "metrics.json").exists()


def test_the_clean_mode_scores_a_query_without_windows_as_a_miss() -> None:
    truth = read_rows(GOLDEN / KIND / "failure_inputs_gt.jsonl")
    guesses = load_lines(GOLDEN / KIND / "failure_inputs_preds.jsonl")
    full = evaluate(truth, guesses, "qvhighlights", "clean")["brief"]
    no_window_predicted(list(truth), guesses)  # type: ignore[arg-type]
    fewer = evaluate(truth, guesses, "qvhighlights", "clean")["brief"]
    assert fewer["MR-full-mAP"] < full["MR-full-mAP"]
    assert fewer["HL-min-Good-mAP"] == full["HL-min-Good-mAP"]


def run_cli(monkeypatch: pytest.MonkeyPatch, truth: Path, guesses: Path, output: Path) -> int:
    arguments = ["evaluate", "--protocol", "qvhighlights", "--output", str(output)]
    arguments += ["--annotations", str(truth), "--predictions", str(guesses)]
    monkeypatch.setattr(sys, "argv", ["mrmodel", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        main()
    return int(exit_info.value.code or 0)
