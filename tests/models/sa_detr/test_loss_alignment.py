"""Alignment of clips and sentences on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mrmodel.models.sa_detr.losses import (
    ClipTextMatching,
    Relevance,
    drawn_clips,
    video_text_contrast,
)
from mrmodel.models.sa_detr.settings import CtmSettings
from tests.rounding import rounding

EAST, NORTH = [1.0, 0.0], [0.0, 1.0]
NOBODY = torch.zeros(2, 2, dtype=torch.bool)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_contrast_by_hand() -> None:
    # Cosines [[1, 0], [1, 0]] over 0.5. Videos: log(1 + e^-2), log(1 + e^2); sentences: log 2 each.
    video, text = torch.tensor([EAST, EAST]) * 3.0, torch.tensor([EAST, NORTH])
    found = video_text_contrast(video, text, NOBODY, 0.5)
    expected = ((softplus(-2.0) + softplus(2.0)) / 2 + math.log(2.0)) / 2
    assert float(found) == pytest.approx(expected)


def test_contrast_of_one_sample_is_zero() -> None:
    one = torch.randn(1, 4)
    assert float(video_text_contrast(one, one, NOBODY[:1, :1], 0.07)) == 0.0


def test_equal_sentences_are_no_negatives() -> None:
    rows = torch.randn(3, 4)
    same = torch.zeros(3, 3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    found = video_text_contrast(rows, rows, same, 1.0)
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    entropies = []
    for i, others in ((0, [2]), (1, [2]), (2, [0, 1])):
        total = sum(math.exp(float(cosines[i, j])) for j in [i, *others])
        entropies.append(math.log(total) - float(cosines[i, i]))
    assert float(found) == pytest.approx(sum(entropies) / 3, rel=1e-5)


def truth_of(labels: list[list[float]], clip: list[int], valid: list[int]) -> Relevance:
    rated = torch.tensor(labels)
    mask = torch.arange(rated.shape[1]) < torch.tensor(valid)[:, None]
    return drawn_clips(torch.tensor(clip)[:, None], rated, mask)


# Sample 0: clips east, north, east; sentence east: cosines 1, 0, 1; the third clip is padding.
# Sample 1: clips north, east, -east; sentence north: cosines 1, 0, 0.
CLIPS = torch.tensor([[EAST, NORTH, EAST], [NORTH, EAST, [-1.0, 0.0]]]) * 2.0
SENTENCE = torch.tensor([EAST, NORTH])
LABELS = [[3.0, 0.0, 0.0], [2.0, 0.0, 1.0]]


def losses_of(
    truth: Relevance, same: Tensor = NOBODY, clips: Tensor = CLIPS, legacy: bool = False
) -> dict[str, float]:
    loss = ClipTextMatching(CtmSettings(tau=0.5, legacy_intra_transposed=legacy))
    return {name: float(v) for name, v in loss(clips, SENTENCE, truth, same).items()}


# A loss is the difference of logits of up to 4, two or three in a sum.
LOGITS = rounding(3, magnitude=4.0)


def test_every_term_by_hand() -> None:
    found = losses_of(truth_of(LABELS, [0, 2], [2, 3]))
    # Logits are cosines / 0.5. local: (2 relevant, 0 not), (2 relevant, 0 not, 0 relevant).
    local = (2 * softplus(-2.0) + 3 * math.log(2.0)) / 5
    assert found["local"] == pytest.approx(local, abs=LOGITS)
    # intra: sample 0, clip 0 against clip 1; sample 1, clip 2 (label 1) against clip 1 (label 0);
    # clip 0 has a higher label and stays out.
    assert found["intra"] == pytest.approx((softplus(-2.0) + math.log(2.0)) / 2, abs=LOGITS)
    # inter: drawn clips are east and -east. Cosines with the sentences: [[1, 0], [-1, 0]].
    clip_to_text = (softplus(-2.0) + softplus(-2.0)) / 2
    text_to_clip = (softplus(-4.0) + math.log(2.0)) / 2
    assert found["inter"] == pytest.approx(clip_to_text + text_to_clip, abs=LOGITS)


def test_clips_of_equal_label_are_no_negatives() -> None:
    """Sample 0 has no clip of a lower label: nothing to learn; sample 1 as before."""
    found = losses_of(truth_of([[3.0, 3.0, 0.0], LABELS[1]], [0, 2], [2, 3]))
    assert found["intra"] == pytest.approx(math.log(2.0) / 2, abs=LOGITS)


def test_a_sample_without_relevant_clip_counts_in_nothing_but_as_a_negative_sentence() -> None:
    labels = [LABELS[0], [0.0, 0.0, 0.0]]
    found = losses_of(truth_of(labels, [0, 2], [2, 3]))
    assert found["local"] == pytest.approx((softplus(-2.0) + math.log(2.0)) / 2, abs=LOGITS)
    assert found["intra"] == pytest.approx(softplus(-2.0), abs=LOGITS)
    # Its sentence is one more answer for the clip; it has no clip that could be an answer.
    assert found["inter"] == pytest.approx(softplus(-2.0) + 0.0, abs=LOGITS)


def test_nothing_relevant_gives_zeros() -> None:
    found = losses_of(truth_of([[0.0] * 3] * 2, [0, 0], [2, 3]))
    assert found == {"local": 0.0, "intra": 0.0, "inter": 0.0}
    mask = torch.ones(2, 3, dtype=torch.bool)
    no_pairs = drawn_clips(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 3), mask)
    assert losses_of(no_pairs) == {"local": 0.0, "intra": 0.0, "inter": 0.0}


def test_equal_sentences_are_no_negatives_of_a_clip() -> None:
    both = ~torch.eye(2, dtype=torch.bool)
    found = losses_of(truth_of(LABELS, [0, 2], [2, 3]), both)
    assert found["inter"] == pytest.approx(0.0, abs=1e-6)


def test_transposed_term_runs_over_the_batch() -> None:
    """Drawn clips 0 of both samples: logits 2 and 2 at clip 0 of the batch."""
    truth = truth_of(LABELS, [0, 0], [2, 3])
    added = losses_of(truth, legacy=True)["intra"] - losses_of(truth)["intra"]
    assert added == pytest.approx(math.log(2.0), rel=1e-5)


def test_padding_is_never_read() -> None:
    truth = truth_of(LABELS, [0, 2], [2, 3])
    noisy = CLIPS.clone()
    noisy[0, 2] = float("nan")
    assert losses_of(truth, clips=noisy) == losses_of(truth)


def test_the_drawn_clip_is_the_last_of_the_pairs() -> None:
    labels, mask = torch.tensor(LABELS), torch.ones(2, 3, dtype=torch.bool)
    truth = drawn_clips(torch.tensor([[1, 0], [0, 1]]), labels, mask)
    assert truth.clip.tolist() == [0, 1]
    assert truth.exists.tolist() == [True, False]
