"""The direction losses on cases small enough to work out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.criterion import LossInputs
from mrmodel.models import build_model
from mrmodel.models.video_lights.losses import DirectionLosses
from mrmodel.types import LayerOutput, ModelOutput, Targets
from tests.losses.test_losses import batch_of


def losses_of(
    scores: Tensor, labels: Tensor, lengths: list[int], *arguments: Any, **extras: Tensor
) -> dict[str, Tensor]:
    none = torch.zeros(len(labels), 0, dtype=torch.int64)
    targets = Targets(torch.zeros(0, 2), [0] * len(labels), none, none, labels)
    heads = LayerOutput(torch.zeros(len(labels), 1, 2), torch.zeros(len(labels), 1, 2))
    output = ModelOutput(heads, heads.spans_cxw, heads.logits[..., 0], scores, extras=extras)
    return DirectionLosses(*arguments)(LossInputs(output, targets, batch_of(lengths)))


# Scores minus the least valid one: (0, 3, 4) of length 5 and (4, 3) of length 5.
SCORES = torch.tensor([[-1.0, 2.0, 3.0], [3.0, 2.0, -90.0]])
LABELS = torch.tensor([[0.0, 6.0, 8.0], [5.0, 0.0, 0.0]])


def test_a_row_that_points_like_its_labels_costs_nothing() -> None:
    losses = losses_of(SCORES[:1], LABELS[:1], [3], "sum", window_saliency=7.0 * SCORES[:1])
    assert losses.keys() == {"task_specific", "task_coupled", "hard_negative", "hard_positive"}
    for value in losses.values():
        assert float(value) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 2)])
def test_direction_losses_by_hand(reduction: str, divisor: int) -> None:
    """Sample 1 becomes (1, 0) over its two valid clips: the least valid score is 2."""
    scores = torch.tensor([[3.0, -1.0, 2.0], [3.0, 2.0, -90.0]])  # sample 0: (0.8, 0, 0.6)
    losses = losses_of(scores, LABELS, [3, 2], reduction, video_text_cosine=scores)
    assert float(losses["task_specific"]) == pytest.approx((1 - 0.48) / divisor)
    assert float(losses["video_text"]) == pytest.approx((1 - 0.48) / divisor)
    assert float(losses["hard_negative"]) == pytest.approx((0.64 / 3 + 0.0) / 2)
    assert float(losses["hard_positive"]) == pytest.approx(((0.36 + 0.04) / 3 + 0.0) / 2)


def test_a_sample_is_judged_alone() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(3, 6), torch.randint(0, 13, (3, 6)).float()
    lengths = [6, 4, 5]
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    labels = labels * mask
    together = losses_of(scores, labels, lengths, "mean")
    alone = [
        losses_of(scores[i : i + 1, :n], labels[i : i + 1, :n], [n], "mean")
        for i, n in enumerate(lengths)
    ]
    for name, value in together.items():
        assert float(value) == pytest.approx(sum(float(x[name]) for x in alone) / 3, rel=1e-5)


def test_padding_and_samples_without_relevant_clips_get_no_gradient() -> None:
    scores = torch.tensor([[1.0, 2.0, 4.0, 9.0], [1.0, 5.0, 2.0, 3.0]], requires_grad=True)
    labels = torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    losses = losses_of(scores, labels, [3, 4], "sum")
    torch.stack(list(losses.values())).sum().backward()
    assert scores.grad is not None
    assert (scores.grad[0, :3].abs() > 1e-3).all()
    assert not scores.grad[0, 3].any()
    assert not scores.grad[1].any()
    # (0, 1, 3) against (3, 1, 0), and nothing for the second sample.
    assert losses["task_specific"].item() == pytest.approx(1 - 1 / 10)


def test_equal_scores_have_no_direction_to_learn_from() -> None:
    scores = torch.tensor([[2.0, 2.0, 2.0], [1.0, 5.0, 2.0]], requires_grad=True)
    losses = losses_of(scores, torch.tensor([[3.0, 1.0, 0.0], [0.0, 3.0, 0.0]]), [3, 3], "sum")
    torch.stack(list(losses.values())).sum().backward()
    assert losses["task_specific"].item() == pytest.approx(1.0 + 1.0 - 4 / 17**0.5)
    assert scores.grad is not None
    assert not scores.grad[0].any()
    assert 0.0 < scores.grad[1].abs().max() < 1.0


def test_hard_losses_together_are_a_cosine_loss() -> None:
    """Rows have length 1, so that the squared distance is 2 (1 - cosine)."""
    torch.manual_seed(1)
    scores, labels = torch.randn(4, 8), torch.randint(0, 13, (4, 8)).float()
    losses = losses_of(scores, labels, [8] * 4, "mean")
    hard = float(losses["hard_negative"] + losses["hard_positive"])
    assert hard == pytest.approx(2 * float(losses["task_specific"]) / 8, rel=1e-5)


def test_legacy_padding_judges_padding_against_the_least_score_of_the_batch() -> None:
    torch.manual_seed(2)
    scores, labels = torch.randn(2, 5), torch.tensor([[0.0, 4, 2, 0, 0], [0.0, 0, 0, 0, 0]])
    losses = losses_of(scores, labels, [3, 5], "sum", True)
    rows, truth = F.normalize(scores - scores.min(), dim=1), F.normalize(labels, dim=1)
    assert float(losses["task_specific"]) == pytest.approx(float(2 - (rows * truth).sum()))
    assert float(losses["hard_negative"]) == pytest.approx(
        float(F.mse_loss(rows * (labels == 0), torch.zeros(2, 5)))
    )


def test_hard_losses_weigh_more_in_later_epochs_only() -> None:
    for growth, expected in ((True, 80.0), (False, 10.0)):
        model = build_model("video_lights", 8, 8, {"hidden": 16, "ffn": 16, "hard_growth": growth})
        criterion = model.criterion()
        assert criterion.weight("hard_positive") == criterion.weight("hard_negative") == 10.0
        hard = criterion.weight("hard_positive", 7), criterion.weight("hard_negative", 7)
        assert hard == (expected, expected)
        assert criterion.weight("task_specific", 7) == 1.0
        losses = {"hard_positive": torch.tensor(2.0), "task_specific": torch.tensor(3.0)}
        assert float(criterion.total(losses, 7)) == 2.0 * expected + 3.0
