"""Alignment losses on cases small enough to work out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mrmodel.models.sg_detr.loss_alignment import AlignmentLoss
from mrmodel.models.sg_detr.output import Alignment
from mrmodel.models.sg_detr.settings import AlignSettings
from tests.rounding import rounding

PLAIN, SHARP = AlignSettings(), AlignSettings(tau=0.07, bce_scale=False)
EAST, NORTH = [1.0, 0.0], [0.0, 1.0]


def alignment_of(
    moment: list[list[float]], non_moment: list[list[float]], sentence: list[list[float]]
) -> Alignment:
    clips = torch.tensor([[EAST, NORTH]] * len(moment))
    return Alignment(*(torch.tensor(x) for x in (moment, non_moment, sentence)), clips)


def judge(
    alignment: Alignment,
    labels: list[list[float]],
    texts: str,
    settings: AlignSettings = PLAIN,
) -> dict[str, float]:
    rated = torch.tensor(labels)
    mask = torch.ones_like(rated, dtype=torch.bool)
    losses = AlignmentLoss(settings)(alignment, rated, mask, list(texts))
    assert list(losses) == ["aux/align", "aux/bce"]
    return {name: float(value) for name, value in losses.items()}


# Lengths must not matter to align: cosines m.s = [1 0; 0 1], n.s = [0 1; -1 0].
TWO = alignment_of([[2.0, 0.0], NORTH], [[0.0, 3.0], [-1.0, 0.0]], [[5.0, 0.0], [0.0, 0.1]])
# Row 0: target 1, others 0 | 0 1. Row 1: target 1, others 0 | -1 0.
ROW_0 = math.log(2 * math.e + 2) - 1
ROW_1 = math.log(math.e + 2 + math.exp(-1)) - 1


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_both_terms_of_two_samples() -> None:
    losses = judge(TWO, [[1.0, 0.0], [0.0, 6.0]], "ab")
    assert losses["aux/align"] == pytest.approx((ROW_0 + ROW_1) / 2)
    # m_0.z = [2 0] with labels 1 0; m_1.z = [0 1] with labels 0 1; all over the root of d = 2.
    first = softplus(-2 / math.sqrt(2)) + softplus(0)
    second = softplus(0) + softplus(-1 / math.sqrt(2))
    assert losses["aux/bce"] == pytest.approx((first + second) / 4)


def test_temperature_and_scale() -> None:
    losses = judge(TWO, [[1.0, 0.0], [0.0, 6.0]], "ab", SHARP)
    cosines = [1.0, 0.0, 0.0, 1.0], [1.0, 0.0, -1.0, 0.0]
    rows = [math.log(sum(math.exp((x - 1) / 0.07) for x in row)) for row in cosines]
    # The logarithm is the difference of logits of up to 1 / 0.07, four in a sum.
    atol = rounding(4, magnitude=1 / 0.07)
    assert losses["aux/align"] == pytest.approx(sum(rows) / 2, abs=atol)
    expected = (softplus(-2) + softplus(0) + softplus(0) + softplus(-1)) / 4
    assert losses["aux/bce"] == pytest.approx(expected)


def test_a_sample_without_relevant_clip_is_left_out() -> None:
    losses = judge(TWO, [[1.0, 0.0], [0.0, 0.0]], "ab")
    assert losses["aux/align"] == pytest.approx(ROW_0)  # its sentence still is a negative one
    assert losses["aux/bce"] == pytest.approx((softplus(-2 / math.sqrt(2)) + softplus(0)) / 2)
    assert judge(TWO, [[0.0, 0.0]] * 2, "ab") == {"aux/align": 0.0, "aux/bce": 0.0}


def test_no_non_moment_where_all_clips_are_relevant() -> None:
    losses = judge(TWO, [[1.0, 2.0], [0.0, 6.0]], "ab")
    alone = math.log(math.e + 1) - 1
    assert losses["aux/align"] == pytest.approx((alone + ROW_1) / 2)


def test_another_sample_with_the_same_sentence_is_no_negative() -> None:
    # Row 0 keeps m.s_0 = 1 and n.s_0 = 0, row 1 keeps m.s_1 = 1 and n.s_1 = 0.
    losses = judge(TWO, [[1.0, 0.0], [0.0, 6.0]], "aa")
    assert losses["aux/align"] == pytest.approx(math.log(math.e + 1) - 1)


def test_one_sample() -> None:
    one = alignment_of([EAST], [NORTH], [EAST])
    assert judge(one, [[1.0, 0.0]], "a")["aux/align"] == pytest.approx(math.log(1 + math.exp(-1)))
    assert judge(one, [[1.0, 1.0]], "a")["aux/align"] == 0.0
    assert judge(one, [[0.0, 0.0]], "a") == {"aux/align": 0.0, "aux/bce": 0.0}


def random_alignment(size: int, length: int, seed: int = 0) -> Alignment:
    generator = torch.Generator().manual_seed(seed)
    moment, non_moment, sentence = torch.randn(3, size, 8, generator=generator)
    return Alignment(
        moment, non_moment, sentence, torch.randn(size, length, 8, generator=generator)
    )


@pytest.mark.parametrize("settings", [PLAIN, SHARP])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_loop(settings: AlignSettings, seed: int) -> None:
    parts = random_alignment(4, 5, seed)
    generator = torch.Generator().manual_seed(seed)
    lengths, texts = [5, 3, 1, 4], "abac"
    labels = torch.randint(0, 2, (4, 5), generator=generator).float()
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    labels = labels * mask
    cosine = torch.nn.CosineSimilarity(dim=0)
    align, entropies = [], []
    for i, length in enumerate(lengths):
        positives = int(labels[i].sum())
        if not positives:
            continue
        negatives = [parts.moment] if positives == length else [parts.moment, parts.non_moment]
        others = [j for j in range(4) if j == i or texts[j] != texts[i]]
        logits = [
            float(cosine(token[i], parts.sentence[j])) / settings.tau
            for token in negatives
            for j in others
        ]
        own = float(cosine(parts.moment[i], parts.sentence[i])) / settings.tau
        align.append(math.log(sum(map(math.exp, logits))) - own)
        scale = 8**-0.5 if settings.bce_scale else 1.0
        for j in range(length):
            logit = float(parts.moment[i] @ parts.clips[i, j]) * scale
            entropies.append(softplus(-logit if labels[i, j] else logit))
    losses = AlignmentLoss(settings)(parts, labels, mask, texts)
    assert float(losses["aux/align"]) == pytest.approx(sum(align) / max(len(align), 1), rel=1e-4)
    expected = sum(entropies) / max(len(entropies), 1)
    assert float(losses["aux/bce"]) == pytest.approx(expected, rel=1e-4)


def test_align_is_least_at_the_diagonal() -> None:
    sentence = torch.eye(4)
    opposite = Alignment(sentence, -sentence, sentence, torch.zeros(4, 2, 4))
    labels = [[1.0, 0.0]] * 4
    least = judge(opposite, labels, "abcd")["aux/align"]
    swapped = replace(opposite, moment=sentence.roll(1, 0))
    assert judge(swapped, labels, "abcd")["aux/align"] > least + 0.5
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        moved = replace(opposite, moment=sentence + 0.3 * torch.randn(4, 4, generator=generator))
        tilted = judge(moved, labels, "abcd", SHARP)["aux/align"]
        assert tilted > judge(opposite, labels, "abcd", SHARP)["aux/align"]


def test_order_of_the_samples_does_not_matter() -> None:
    parts, labels = random_alignment(4, 3), torch.tensor([[1.0, 0, 0], [0] * 3, [1] * 3, [0, 9, 1]])
    order = [2, 0, 3, 1]
    shuffled = Alignment(*(t[order] for t in (parts.moment, parts.non_moment)),
                         parts.sentence[order], parts.clips[order])  # fmt: skip
    expected = judge(parts, labels.tolist(), "abcb")
    found = judge(shuffled, labels[order].tolist(), "cabb")
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("garbage", [0.0, 1e4, -1e4, math.inf, math.nan])
def test_padding_changes_nothing(garbage: float) -> None:
    parts = random_alignment(4, 4)
    labels = torch.tensor([[1.0, 0, 0, 2], [3, 0, 0, 0], [1, 1, 0, 0], [0] * 4])
    mask = torch.arange(4) < torch.tensor([4, 3, 2, 2])[:, None]
    expected = AlignmentLoss(PLAIN)(parts, labels, mask, "abcd")
    longer = torch.cat((mask, torch.zeros(4, 5, dtype=torch.bool)), dim=1)
    clips, rated = torch.full((4, 9, 8), garbage), torch.full((4, 9), garbage)
    clips[longer], rated[longer] = parts.clips[mask], labels[mask]
    found = AlignmentLoss(PLAIN)(replace(parts, clips=clips), rated, longer, "abcd")
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("labels", [[[0.0] * 3] * 2, [[1.0] * 3] * 2, [[0.0] * 3, [0.0, 1, 0]]])
def test_finite_with_finite_gradients(scale: float, labels: list[list[float]]) -> None:
    parts = random_alignment(2, 3)
    leaves = [
        (part * scale).requires_grad_()
        for part in (parts.moment, parts.non_moment, parts.sentence, parts.clips)
    ]
    rated = torch.tensor(labels)
    for settings in (PLAIN, SHARP):
        losses = AlignmentLoss(settings)(Alignment(*leaves), rated, rated > -1, "ab")
        assert all(value.isfinite() for value in losses.values())
        gradients = torch.autograd.grad(sum(losses.values()), leaves)
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_float32_under_autocast() -> None:
    parts = random_alignment(4, 5)
    labels = torch.ones(4, 5)
    labels[:, 0] = 0.0
    expected = AlignmentLoss(SHARP)(parts, labels, labels > -1, "abcd")
    with torch.autocast("cpu", torch.bfloat16):
        found = AlignmentLoss(SHARP)(parts, labels, labels > -1, "abcd")
    for name, value in expected.items():
        assert torch.equal(found[name], value)
