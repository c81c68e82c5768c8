"""Highlight losses on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mrmodel.losses.highlight import HighlightLoss
from mrmodel.losses.saliency import margin_loss, negative_pair_loss, rank_contrastive_loss
from mrmodel.losses.settings import ClipScoreSettings
from mrmodel.types import Targets

NAMES = ["margin", "rctl", "bce_neg"]
PAPER = ClipScoreSettings()
ROBUST = ClipScoreSettings(rctl_norm="active", neg_reduction="mean")


def targets_of(labels: Tensor, pos: list[list[int]], neg: list[list[int]]) -> Targets:
    return Targets(
        torch.zeros(0, 2), [0] * len(labels), torch.tensor(pos), torch.tensor(neg), labels
    )


def judge(
    scores: Tensor,
    negative: Tensor,
    labels: list[list[float]],
    has: list[bool] | None = None,
    settings: ClipScoreSettings = PAPER,
) -> dict[str, Tensor]:
    """Losses of unpadded samples; the pairs are the clip of the highest and of the lowest label."""
    rated = torch.tensor(labels)
    pos, neg = rated.argmax(1, keepdim=True), rated.argmin(1, keepdim=True)
    targets = targets_of(rated, pos.tolist(), neg.tolist())
    exists = torch.tensor([True] * len(scores) if has is None else has)
    return HighlightLoss(settings)(
        scores, negative, exists, targets, torch.ones_like(rated, dtype=torch.bool)
    )


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


SCORES, NEGATIVE = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.0, -0.5]])
# Clip 0 has label 3, so that thresholds 1, 2, 3 each ask for -log p of it. Over temperature 0.5 the
# logits are 2, 1 | 0, -1: -log p = log(1 + e^-1 + e^-2 + e^-3).
RANK = math.log(1 + math.exp(-1) + math.exp(-2) + math.exp(-3))


def test_every_term_of_two_clips() -> None:
    losses = judge(SCORES, NEGATIVE, [[3.0, 0.0]])
    assert list(losses) == NAMES
    assert float(losses["margin"]) == 0.0  # 0.2 + 0.5 - 1.0 < 0
    assert float(losses["rctl"]) == pytest.approx(3 * RANK / 12)
    assert float(losses["bce_neg"]) == pytest.approx(softplus(0.0) + softplus(-0.5))


def test_the_other_normalisers() -> None:
    losses = judge(SCORES, NEGATIVE, [[3.0, 0.0]], settings=ROBUST)
    assert float(losses["rctl"]) == pytest.approx(3 * RANK / 3)
    assert float(losses["bce_neg"]) == pytest.approx((softplus(0.0) + softplus(-0.5)) / 2)


def test_thresholds_are_active_where_any_sample_has_a_positive() -> None:
    scores, negative = SCORES.repeat(2, 1), NEGATIVE.repeat(2, 1)
    losses = judge(scores, negative, [[3.0, 0.0], [1.0, 0.0]], settings=ROBUST)
    # Batch means RANK, RANK / 2, RANK / 2 of thresholds 1, 2, 3; three are active.
    assert float(losses["rctl"]) == pytest.approx(2 * RANK / 3)


def test_a_threshold_takes_the_mean_over_its_positives() -> None:
    losses = judge(SCORES, NEGATIVE, [[2.0, 1.0]])
    # Threshold 1: the mean of -log p of both clips, the second one e times less likely; 2: RANK.
    assert float(losses["rctl"]) == pytest.approx((RANK + 0.5 + RANK) / 12)


def test_rank_loss_without_negative_sentence_runs_over_the_own_clips() -> None:
    garbage = torch.tensor([[1e4, -1e4]])
    losses = judge(SCORES, garbage, [[1.0, 0.0]], has=[False])
    assert float(losses["rctl"]) == pytest.approx(math.log(1 + math.exp(-1)) / 12)
    assert float(losses["bce_neg"]) == 0.0


def test_only_samples_with_negative_sentence_count_in_its_term() -> None:
    negative = torch.tensor([[0.0, -0.5], [7.0, 7.0]])
    for settings, clips in ((PAPER, 1), (ROBUST, 2)):
        losses = judge(
            SCORES.repeat(2, 1), negative, [[1.0, 0.0]] * 2, has=[True, False], settings=settings
        )
        expected = (softplus(0.0) + softplus(-0.5)) / clips
        assert float(losses["bce_neg"]) == pytest.approx(expected)


def test_margin_of_pairs() -> None:
    scores = torch.tensor([[1.0, 0.0, 0.9, 5.0], [1.0, 2.0, 3.0, 4.0]])
    labels = torch.tensor([[3.0, 0, 2, 0], [1, 0, 1, 0]])
    mask = torch.ones(2, 4, dtype=torch.bool)
    targets = targets_of(labels, [[0, 2], [0, 1]], [[1, 0], [0, 3]])
    losses = HighlightLoss(PAPER)(scores, scores, torch.ones(2) > 0, targets, mask)
    # 0.2 + 0 - 1 < 0 and 0.2 + 1 - 0.9 = 0.3. A clip with itself is no pair, and clip 1 is not
    # relevant (0.2 + 4 - 2 would be 2.2): 2 / (2 * 2) * 0.3.
    assert float(losses["margin"]) == pytest.approx(0.15)


def test_no_pairs_at_all() -> None:
    targets = targets_of(torch.zeros(1, 2), [[]], [[]])
    targets.saliency_pos = targets.saliency_neg = torch.zeros(1, 0, dtype=torch.int64)
    losses = HighlightLoss(PAPER)(
        SCORES.clone().requires_grad_(), NEGATIVE, torch.tensor([True]), targets, SCORES > -9
    )
    assert losses["margin"].item() == 0.0
    assert losses["margin"].requires_grad


def test_rank_loss_drops_when_a_positive_score_rises() -> None:
    labels = [[0.0, 5.0, 2.0, 0.0]]
    scores, negative = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
    before = judge(scores, negative, labels)["rctl"]
    for clip, sign in (
        (1, -1),
        (0, 1),
        (3, 1),
    ):
        moved = scores.clone()
        moved[0, clip] += 0.5
        assert sign * (judge(moved, negative, labels)["rctl"] - before) > 0.01
    assert judge(scores, negative + 1.0, labels)["rctl"] > before + 0.01


def test_agrees_with_the_published_terms() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, negative = torch.randn(2, 3, 5, generator=generator)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])
    labels = torch.tensor([[0.0, 12, 3, 3, 7], [0, 0, 0, 0, 0], [1, 0, 2, 5, 0]])
    targets = targets_of(labels, [[1, 4], [0, 2], [3, 2]], [[2, 0], [0, 2], [0, 1]])
    losses = HighlightLoss(PAPER)(scores, negative, torch.ones(3) > 0, targets, mask)
    no_pairs = (
        2 * 2 * 0.2 / 6
    )  # which the published form counts for the sample without relevant clip
    for name, expected in (
        ("margin", margin_loss(scores, targets, 0.2) - no_pairs),
        ("rctl", rank_contrastive_loss(scores, negative, labels, mask)),
        ("bce_neg", negative_pair_loss(negative, mask)),
    ):
        assert float(losses[name]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("settings", [PAPER, ROBUST])
@pytest.mark.parametrize("garbage", [0.0, 1e4, -1e4, math.inf, math.nan])
def test_padding_changes_nothing(settings: ClipScoreSettings, garbage: float) -> None:
    generator = torch.Generator().manual_seed(1)
    scores, negative = torch.randn(2, 3, 6, generator=generator)
    labels = torch.randint(0, 13, (3, 6), generator=generator).float()
    mask = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    labels = labels * mask
    pairs = [[0, 1], [1, 0], [3, 2]], [[5, 4], [0, 1], [1, 1]]
    has = torch.tensor([True, True, False])

    def losses(extra: int) -> list[float]:
        def padded(rows: Tensor, value: float) -> Tensor:
            rows = torch.cat((rows, torch.full((3, extra), value)), dim=1)
            valid = torch.cat((mask, torch.zeros(3, extra, dtype=torch.bool)), dim=1)
            return torch.where(valid, rows, value)

        targets = targets_of(padded(labels, garbage), *pairs)
        parts = padded(scores, garbage), padded(negative, -garbage), has, targets
        valid = torch.cat((mask, torch.zeros(3, extra, dtype=torch.bool)), dim=1)
        return [float(value) for value in HighlightLoss(settings)(*parts, valid).values()]

    without = HighlightLoss(settings)(scores, negative, has, targets_of(labels, *pairs), mask)
    assert losses(7) == pytest.approx([float(value) for value in without.values()], rel=1e-5)


@pytest.mark.parametrize("settings", [PAPER, ROBUST])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "labels",
    [[[0.0, 0.0, 0.0]], [[4.0]], [[12.0, 12.0, 12.0]], [[3.0, 0.0]], [[0.0, 0.0], [0.0, 9.0]]],
)
def test_finite_with_finite_gradients(
    settings: ClipScoreSettings, scale: float, dtype: torch.dtype, labels: list[list[float]]
) -> None:
    shape = len(labels), len(labels[0])
    signs = torch.tensor([1.0, -1.0, 1.0])[: shape[1]].expand(shape)
    for has in (True, False):
        scores = (signs * scale).to(dtype).requires_grad_()
        negative = (-signs * scale).to(dtype).requires_grad_()
        losses = judge(scores, negative, labels, has=[has] * shape[0], settings=settings)
        assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
        gradients = torch.autograd.grad(sum(losses.values()), (scores, negative))
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_without_support_a_term_is_zero_and_attached() -> None:
    scores = torch.tensor([[0.3, 0.4]], requires_grad=True)
    losses = judge(scores, scores, [[0.0, 0.0]], has=[False])
    for name in ("margin", "rctl", "bce_neg"):
        assert losses[name].item() == 0.0
        assert not torch.autograd.grad(losses[name], scores, retain_graph=True)[0].any()
