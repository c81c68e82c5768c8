"""R@1, R@5, mean IoU and mAP against recorded numbers of the published evaluators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mrmodel.evaluate.run import score_files

from .folder import case_folders, load

CASES = case_folders("evaluator_charades")


def test_the_folder_has_cases() -> None:
    assert CASES


@pytest.mark.parametrize("protocol", ["charades", "tacos"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_figure_is_equal_to_the_last_digit(case: Path, protocol: str) -> None:
    metrics = score_files(case / "gt.jsonl", case / "preds.jsonl", protocol).metrics
    expected = load(case / "metrics.json")
    np.testing.assert_allclose(metrics.pop("top1_iou"), expected.pop("top1_iou"), atol=1e-6, rtol=0)
    assert metrics == expected
