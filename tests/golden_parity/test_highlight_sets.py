"""TVSum and YouTube Highlights against recorded numbers."""

from __future__ import annotations

from typing import Any

import pytest

from mrmodel.evaluate.run import evaluate

from .folder import GOLDEN, load

PROTOCOLS = {"tvsum.json": "tvsum", "youtube_highlight.json": "youtube_hl"}
FILES = {name: GOLDEN / "highlight_sets" / name for name in PROTOCOLS}
CASES = [
    pytest.param(PROTOCOLS[name], case, id=f"{PROTOCOLS[name]}-{number}")
    for name, path in FILES.items()
    if path.exists()
    for number, case in enumerate(load(path))
]


def test_the_folder_has_cases() -> None:
    assert all(path.exists() and load(path) for path in FILES.values())


@pytest.mark.parametrize(("protocol", "case"), CASES)
def test_every_figure_is_equal_to_the_last_digit(protocol: str, case: dict[str, Any]) -> None:
    annotations = [
        {"qid": video, "vid": f"v{video}", "saliency_scores": labels}
        for video, labels in enumerate(case["labels"])
    ]
    predictions = [
        {"qid": video, "pred_saliency_scores": scores}
        for video, scores in enumerate(case["scores"])
    ]
    metrics = evaluate(annotations, predictions, protocol)
    assert metrics == {"mAP": case["mAP"], "mAP_per_video": case["mAP_per_video"]}
