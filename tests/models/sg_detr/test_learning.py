"""A tiny SG-DETR learns one batch by heart: its windows and its best clips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mrmodel.models import MomentModel
from mrmodel.spans import aligned_iou, cxw_to_xx
from mrmodel.types import Batch, ModelOutput, Targets
from tests.conformance.test_models import evaluate, make_batch
from tests.models.sg_detr.whole import small_model
from tests.models.small import train_pass, train_until

CLIPS = (12, 8, 10)
# First and last relevant clip; of these the best and the worst; and a clip outside.
MOMENTS = ((2, 5, 3, 5, 0), (0, 2, 0, 2, 7), (6, 9, 8, 6, 1))
STEPS = 300


def targets_of(batch: Batch) -> Targets:
    labels = torch.zeros(batch.video_mask.shape)
    spans = []
    for b, (first, last, best, _, _) in enumerate(MOMENTS):
        labels[b, first : last + 1] = 6.0
        labels[b, best] = 12.0
        spans.append(((first + last + 1) / 2 / CLIPS[b], (last + 1 - first) / CLIPS[b]))
    return Targets(
        spans_cxw=torch.tensor(spans),
        span_counts=[1] * len(MOMENTS),
        saliency_pos=torch.tensor([[best, best] for _, _, best, _, _ in MOMENTS]),
        saliency_neg=torch.tensor([[worst, outside] for *_, worst, outside in MOMENTS]),
        saliency_labels=labels,
    )


def recall_at_one(output: ModelOutput, targets: Targets) -> Tensor:
    """Share of samples whose best window has an IoU of at least 0.7 with the true one."""
    best = output.scores.argmax(1)
    spans = output.spans_cxw[torch.arange(len(best)), best]
    overlap = aligned_iou(cxw_to_xx(spans), cxw_to_xx(targets.spans_cxw))
    return (overlap >= 0.7).float().mean()


def hits_at_one(output: ModelOutput, batch: Batch, targets: Targets) -> Tensor:
    """Share of samples whose best clip is the one that annotators liked best."""
    saliency = output.saliency.masked_fill(~batch.video_mask, -torch.inf)
    return (saliency.argmax(1) == targets.saliency_labels.argmax(1)).float().mean()


def is_learned(model: MomentModel, batch: Batch, targets: Targets) -> bool:
    """Whether a few hundred steps bring the best window and the best clip of all samples."""
    criterion = model.criterion()

    def step(seed: int) -> Tensor:
        output, _ = train_pass(model, batch, targets, seed=seed)
        return criterion.total(criterion(output, targets, batch))

    def done() -> bool:
        answer = evaluate(model, batch)
        return bool(
            recall_at_one(answer, targets) == 1 and hits_at_one(answer, batch, targets) == 1
        )

    return train_until(model, step, done, STEPS)


@pytest.mark.parametrize("preset", ["robust", "released"])
def test_one_batch_is_learned_by_heart(preset: str) -> None:
    batch = make_batch(clips=CLIPS)
    targets = targets_of(batch)
    model = small_model(spread=0.0, preset=preset, hidden=32, ffn=48, heads=4)
    untrained = evaluate(model, batch)
    assert recall_at_one(untrained, targets) < 1
    assert is_learned(model, batch, targets)
