"""Rows that are wrong in themselves: their times and, in published files, their form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrmodel.data.annotations import scan_annotations, window_clips
from mrmodel.data.check import check_file
from mrmodel.types import MAX_DURATION_S

GOOD: dict[str, Any] = {"qid": 1, "query": "a red card", "vid": "base", "duration": 12.0}
NS = 1000000000.0


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"duration": NS}, "duration = 1000000000.0: longer than a day; milliseconds?"),
        ({"duration": 86_400_001}, "duration = 86400001: longer than a day; milliseconds?"),
        ({"duration": 10**400}, "is too large"),
        ({"relevant_windows": [[0, NS]]}, "lies outside the video of 12.0 s"),
        ({"relevant_windows": [[-NS, 1]]}, "lies outside the video of 12.0 s"),
        ({"relevant_clip_ids": [1, 10**18]}, "holds 1000000000000000000: the video has 6 clips"),
        ({"saliency_scores": [[1]] * 9}, "9 for 0 relevant clips"),
        ({"duration": NS, "relevant_windows": [[0, NS]]}, "longer than a day"),
    ],
)
def test_nanoseconds_and_frame_numbers(tmp_path: Path, change: dict[str, Any], rule: str) -> None:
    path = tmp_path / "rows.jsonl"
    truth = {"relevant_windows": [[2, 4]]}
    rows = [{**GOOD, **truth, **change}, {**GOOD, **truth, "qid": 2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check_file(path)
    (error,) = report.errors
    assert (error.line, error.qid, report.summary["queries"]) == (1, 1, 1)
    assert rule in error.rule


def test_a_day_of_many_windows_is_quick(tmp_path: Path) -> None:
    windows = [[start, MAX_DURATION_S] for start in range(3000)]
    row = GOOD | {"duration": MAX_DURATION_S, "relevant_windows": windows, "relevant_clip_ids": [0]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    (found,) = scan_annotations(path).rows
    assert window_clips(found.relevant_windows, 2.0) == set(range(43_200))
