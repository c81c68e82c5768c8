"""Every switch and every row of the ablation: what it changes, and that all of it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mrmodel.models.sg_detr.selector import LearnedQueries, QuerySelector
from tests.models.sg_detr.whole import detector_of, long_data, small_model
from tests.models.small import assert_learns_and_is_saved, train_pass

# Table 2 of the paper, rows a to e.
DAB = {"query_selection": False, "anchor_head": False, "auxiliary_queries": False}
ROW_C = DAB | {"global_saliency": False}
ROW_B = ROW_C | {"iou_head": False}
ROW_A = ROW_B | {"saliency_guided": False}
ABLATION: dict[str, dict[str, Any]] = {"a": ROW_A, "b": ROW_B, "c": ROW_C, "d": DAB, "e": {}}
SWITCHES: list[dict[str, Any]] = [
    {"preset": "released", "legacy_rank_axis": True},
    {"dropout": 0.1, "drop_path": 0.15, "input_dropout": 0.5},
    {"projection_layers": 1, "pooling_layers": 1, "cross_attention_layers": 2},
    {"anchor_head_layers": 3, "decoder_layers": 3, "encoder_layers": 2},
    {"query_selection": False},
    # So many queries that every level has some.
    {"anchor_head": False, "auxiliary_queries": False, "queries": 60},
    {"auxiliary_queries": False},
    {"highlights_only": True},
    {"highlights_only": True, "alignment": False},
    {"anchor_topk": 5},
]


@pytest.mark.parametrize("changes", [*ABLATION.values(), *SWITCHES], ids=lambda x: "-".join(x))
def test_every_switch_runs_learns_and_is_saved(changes: dict[str, Any]) -> None:
    """With more queries than the shorter video has positions."""
    model = small_model(**{"queries": 20} | changes)
    assert_learns_and_is_saved("sg_detr", model, data=long_data())


def test_the_refinement_of_a_single_decoder_layer_is_not_used() -> None:
    """It is read without gradient: the only layer predicts from the start."""
    spared = ("detector.decoder.refinement",)
    assert_learns_and_is_saved("sg_detr", small_model(decoder_layers=1), spared, long_data())


@pytest.mark.parametrize("row", "abcde")
def test_parts_of_the_rows(row: str) -> None:
    model = small_model(**ABLATION[row])
    detector, hybrid = detector_of(model), row == "e"
    assert isinstance(detector.start, QuerySelector if hybrid else LearnedQueries)
    for part in (detector.pyramid, detector.anchor_head, detector.auxiliary_content):
        assert (part is not None) == hybrid
    assert (model.global_saliency.head is not None) == (row in "de")
    assert (detector.decoder.iou_head is not None) == (row in "cde")
    # Ranked by the probability, or with the IoU; clip scores are local ones, or others.
    output, parts = train_pass(model, *long_data())
    p, iou = parts.moments.logits[-1].sigmoid(), parts.moments.iou_logits[-1].sigmoid()
    torch.testing.assert_close(output.scores, (p * iou).sqrt() if row in "cde" else p)
    assert torch.equal(output.saliency, parts.local) == (row in "abc")


@pytest.mark.parametrize("row", "abe")
def test_the_gate_is_the_local_saliency(row: str) -> None:
    """Local scores far below zero close it: the windows do not depend on the sentence."""
    (batch, targets), model = long_data(), small_model(**ABLATION[row])
    with torch.no_grad():
        model.local_saliency.shift.fill_(-200.0)
        if model.global_saliency.head is not None:
            model.global_saliency.head.weight.zero_()
    spans = []
    for words in (batch.text, batch.text.flip(1) * 2.0 + 1.0):
        batch.text = words
        spans.append(train_pass(model, batch, targets)[0].spans_cxw)
    assert torch.allclose(*spans, atol=1e-5) == (row != "a")
