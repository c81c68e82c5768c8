"""A tiny SA-DETR learns one batch by heart: its windows and its best clips."""

from __future__ import annotations

import pytest

from tests.conformance.test_models import evaluate, make_batch
from tests.models.sa_detr.whole import small_model
from tests.models.sg_detr.test_learning import CLIPS, is_learned, recall_at_one, targets_of


@pytest.mark.parametrize("preset", ["paper", "robust"])
def test_one_batch_is_learned_by_heart(preset: str) -> None:
    batch = make_batch(clips=CLIPS)
    targets = targets_of(batch)
    model = small_model(spread=0.0, preset=preset, hidden=32, ffn=48, heads=4)
    assert recall_at_one(evaluate(model, batch), targets) < 1
    assert is_learned(model, batch, targets)
