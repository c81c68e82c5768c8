"""A tiny SA-DETR learns one batch by heart: its windows and its best clips."""

from __future__ import annotations

import pytest
import torch

from tests.conformance.test_models import evaluate, make_batch
from tests.models.sa_detr.whole import small_model, train_pass
from tests.models.sg_detr.test_learning import CLIPS, hits_at_one, recall_at_one, targets_of

STEPS, EVERY = 200, 10


@pytest.mark.parametrize("preset", ["paper", "robust"])
def test_one_batch_is_learned_by_heart(preset: str) -> None:
    batch = make_batch(clips=CLIPS)
    targets = targets_of(batch)
    model = small_model(spread=0.0, preset=preset, hidden=32, ffn=48, heads=4)
    assert recall_at_one(evaluate(model, batch), targets) < 1
    criterion, optimiser = model.criterion(), torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(STEPS):
        output, _ = train_pass(model, batch, targets, seed=step)
        optimiser.zero_grad()
        criterion.total(criterion(output, targets, batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % EVERY == EVERY - 1:
            learned = evaluate(model, batch)
            recall, hits = recall_at_one(learned, targets), hits_at_one(learned, batch, targets)
            if recall == hits == 1:
                return
    raise AssertionError(f"after {STEPS} steps R1@0.7 is {recall:.2f}, HIT@1 {hits:.2f}")
