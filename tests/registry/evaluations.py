"""Evaluations as a better model, or another test set, would have left them."""

from __future__ import annotations

import json
from pathlib import Path

from mrmodel.files import write_json, write_jsonl
from mrmodel.stages.test_set import TestSetContents


def read_frozen(project: Path) -> TestSetContents:
    """The frozen test set of a project folder."""
    path = project / "reports/evaluation/test_set.json"
    return TestSetContents.from_json(path.read_text(), str(path))


def let_it_know_everything(project: Path, way: str) -> None:
    """Replace the answers of a model by the annotations."""
    path = project / f"reports/evaluation/{way}.jsonl"
    answers = {row["qid"]: row for row in map(json.loads, path.read_text().splitlines())}
    for row in read_frozen(project).rows:
        windows = [[*window, 1.0] for window in row["relevant_windows"]]
        scores = [0.0] * len(answers[row["qid"]]["pred_saliency_scores"])
        for clip, ratings in zip(row["relevant_clip_ids"], row["saliency_scores"], strict=True):
            scores[clip] = float(sum(ratings))
        answers[row["qid"]] |= {"pred_relevant_windows": windows, "pred_saliency_scores": scores}
    write_jsonl(path, answers.values())


def forget_a_query(project: Path, way: str) -> tuple[TestSetContents, TestSetContents]:
    """Take the last query out of the test set and out of a model's answers; before and after."""
    before = read_frozen(project)
    after = TestSetContents(before.split, before.rows[:-1], before.videos)
    write_json(project / "reports/evaluation/test_set.json", after.as_json())
    path = project / f"reports/evaluation/{way}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return before, after
