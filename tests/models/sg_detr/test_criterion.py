"""Losses by name; recorded numbers have their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conformance.test_models import evaluate, make_batch, make_targets
from tests.models.sg_detr.whole import small_model
from tests.models.small import train_pass

TERMS = ("span", "giou", "label", "iou")
CLIPS = ("margin", "rank", "relevance", "negative")
LOCAL, GLOBAL = ({f"saliency/{kind}/{term}" for term in CLIPS} for kind in ("local", "global"))
ALIGNMENT = {"alignment/alignment", "alignment/moment"}
SELECTOR = {f"selector/{term}" for term in TERMS}
ANCHORS = {f"anchors/{term}" for term in ("label", "span", "giou", "centerness")}
DECODER = {f"decoder/l{layer}/{term}" for layer in range(2) for term in TERMS}
AUXILIARY = {f"auxiliary/l{layer}/{term}" for layer in range(2) for term in TERMS[:3]}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, LOCAL | GLOBAL | ALIGNMENT | SELECTOR | ANCHORS | DECODER | AUXILIARY),
        (
            {"anchor_head": False, "auxiliary_queries": False},
            LOCAL | GLOBAL | ALIGNMENT | SELECTOR | DECODER,
        ),
        (
            {"query_selection": False, "auxiliary_queries": False, "global_saliency": False},
            LOCAL | ALIGNMENT | ANCHORS | DECODER,
        ),
        ({"highlights_only": True, "alignment": False}, LOCAL | GLOBAL),
    ],
)
def test_losses_by_name(changes: dict[str, Any], names: set[str]) -> None:
    batch, model = make_batch(), small_model(**changes)
    targets, criterion = make_targets(batch), model.criterion()
    losses = criterion(train_pass(model, batch, targets)[0], targets, batch)
    assert losses.keys() == names
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert all(criterion.weight(name) > 0 for name in losses)


def test_without_pairs_there_is_no_margin_loss() -> None:
    batch, model = make_batch(), small_model()
    targets = make_targets(batch)
    targets.saliency_pos = targets.saliency_neg = torch.zeros(3, 0, dtype=torch.int64)
    losses = model.criterion()(train_pass(model, batch, targets)[0], targets, batch)
    assert losses["saliency/local/margin"].item() == losses["saliency/global/margin"].item() == 0.0


def test_losses_need_the_output_of_training() -> None:
    batch, model = make_batch(), small_model()
    with pytest.raises(TypeError, match="training mode"):
        model.criterion()(evaluate(model, batch), make_targets(batch), batch)
