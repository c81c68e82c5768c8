"""Decoding, window processing and suppression against recorded rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mrmodel.evaluate.qvhighlights import QVHighlights
from mrmodel.predict.postprocess import (
    RawPredictions,
    clamp_windows,
    decode,
    keep_best,
    limit_lengths,
    round_windows,
)

from .folder import GOLDEN, load

FOLDER = GOLDEN / "postprocess"
INPUTS = sorted(FOLDER.glob("*decode_inputs.npz"))
WINDOWS = [
    pytest.param(cases["windows"], case, id=f"{path.stem}-{number}")
    for path in sorted(FOLDER.glob("*window_cases.json"))
    for cases in [load(path)]
    for number, case in enumerate(cases["cases"])
]
SUPPRESSIONS = [
    pytest.param(case, id=f"{path.stem}-{number}")
    for path in sorted(FOLDER.glob("*nms_cases.json"))
    for number, case in enumerate(load(path))
]


def test_the_folder_has_cases() -> None:
    assert INPUTS
    assert WINDOWS
    assert SUPPRESSIONS


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_official_decoding_gives_the_recorded_rows(path: Any) -> None:
    with np.load(path) as arrays:
        logits = arrays["pred_logits"]
        raw = RawPredictions(
            spans_cxw=arrays["pred_spans"],
            scores=foreground(logits),
            saliency=arrays["saliency_scores"],
            clip_mask=arrays["src_vid_mask"] > 0,
            duration_s=arrays["duration"],
            clip_len_s=2.0,
        )
    rows = load(path.with_name(path.name.replace("inputs.npz", "expected.json")))
    decoded = decode(raw, QVHighlights().official_postprocess(2.0))
    assert len(decoded) == len(rows)
    for ours, row in zip(decoded, rows, strict=True):
        assert [list(window) for window in ours.windows] == row["pred_relevant_windows"]
        # float("inf") reads the strings that mark a half-precision overflow.
        assert list(ours.saliency) == [float(score) for score in row["pred_saliency_scores"]]


@pytest.mark.parametrize(("windows", "case"), WINDOWS)
def test_processing_steps_give_the_recorded_windows(
    windows: list[list[float]], case: dict[str, Any]
) -> None:
    config = case["config"]
    steps: dict[str, Callable[[Any], Any]] = {
        "clip_ts": lambda spans: clamp_windows(spans, config["min_ts_val"], config["max_ts_val"]),
        "round_multiple": lambda spans: round_windows(spans, config["clip_length"]),
        "clip_window_l": lambda spans: limit_lengths(
            spans, config["min_w_l"], config["max_w_l"], config["move_window_method"]
        ),
    }
    table = np.array(windows)
    spans = table[:, :2].astype(np.float32)
    for name in config["process_func_names"]:
        spans = steps[name](spans)
    ours = [
        [*span, round(score, 4)] for span, score in zip(spans.tolist(), table[:, 2], strict=True)
    ]
    assert ours == case["expected"]


@pytest.mark.parametrize("case", SUPPRESSIONS)
def test_suppression_returns_the_recorded_windows(case: dict[str, Any]) -> None:
    ranked = np.array(sorted(case["windows"], key=lambda window: -window[2]))
    kept = keep_best(
        ranked[None, :, :2], ranked[None, :, 2], case["nms_thd"], case["max_after_nms"]
    )[0]
    assert ranked[kept].tolist() == case["returned_triples"]


def foreground(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True))[..., 0]
