"""Quality losses on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.sa_detr.losses import quality_loss, quality_margin
from mrmodel.models.sa_detr.settings import QualitySettings
from mrmodel.models.sa_detr.span_refiner import RefinedQueries

# One layer, two samples of two queries. Sample 0 has the windows (0, 0.4) and (0.6, 1); its queries
# say (0, 0.4), IoU 1, and (0.5, 0.9), IoU 0.3 / 0.5 with the second one. Sample 1 has no window.
SPANS = torch.tensor([[[[0.2, 0.4], [0.7, 0.4]], [[0.5, 0.2], [0.1, 0.1]]]])
WINDOWS = PaddedWindows(
    torch.tensor([[[0.2, 0.4], [0.8, 0.4]], [[0.5, 0.5], [0.5, 0.5]]]),
    torch.tensor([[True, True], [False, False]]),
)
BEST = torch.tensor([[[1.0, 0.6], [0.0, 0.0]]])
QUALITY = torch.tensor([[[0.9, 0.2], [0.3, 0.1]]])  # errors .1, .4, .3, .1
MATCHED = torch.tensor([[[True, False], [False, False]]])
ALL = torch.ones(2, 2, dtype=torch.bool)


def loss_of(
    quality: Tensor = QUALITY, used: Tensor = ALL, spans: Tensor = SPANS, **settings: object
) -> Tensor:
    found = RefinedQueries(quality.logit(), spans)
    return quality_loss(found, WINDOWS, MATCHED, used, QualitySettings.model_validate(settings))


def test_mean_error() -> None:
    torch.testing.assert_close(loss_of(), torch.tensor([0.9 / 4]))


def test_only_matched_queries_weigh_more() -> None:
    torch.testing.assert_close(loss_of(w_matched=10.0), torch.tensor([(1.0 + 0.8) / 4]))


def test_sum_of_each_sample() -> None:
    torch.testing.assert_close(loss_of(norm="sum_per_sample"), torch.tensor([0.9 / 2]))


def test_unused_queries_are_not_judged() -> None:
    used = torch.tensor([[True, True], [False, True]])
    torch.testing.assert_close(loss_of(used=used), torch.tensor([0.6 / 3]))
    nothing = torch.zeros_like(used)
    assert float(loss_of(used=nothing)) == 0.0


def test_mean_of_three_ranges() -> None:
    """IoU 1: error .1; IoU .6: error .4; IoU 0: errors .3 and .1."""
    expected = torch.tensor([(0.1 + 0.4 + 0.2) / 3])
    torch.testing.assert_close(loss_of(weighting="bins"), expected)
    # Without the first query nothing is above 0.7: that range counts as 0.
    used = torch.tensor([[False, True], [True, True]])
    expected = torch.tensor([(0.4 + 0.2) / 3])
    torch.testing.assert_close(loss_of(used=used, weighting="bins"), expected)


def test_nothing_to_learn_when_the_quality_is_right() -> None:
    assert float(loss_of(BEST.clamp(1e-6, 1 - 1e-6))) == pytest.approx(0.0, abs=1e-5)


def test_the_span_learns_nothing_from_its_quality() -> None:
    logits, spans = QUALITY.logit().requires_grad_(), SPANS.clone().requires_grad_()
    used = torch.ones(2, 2, dtype=torch.bool)
    found = RefinedQueries(logits, spans)
    loss = quality_loss(found, WINDOWS, MATCHED, used, QualitySettings()).sum()
    of_logits, of_spans = torch.autograd.grad(loss, (logits, spans), allow_unused=True)
    assert of_logits.all()
    assert of_spans is None


def test_margin_pairs_of_uneven_samples() -> None:
    """Two groups, up to two windows; sample 1 has one. q_far - q_near + 0.4 where positive."""
    near = torch.tensor([[[0.9, 0.5], [0.8, 0.3]], [[0.6, 0.0], [0.1, 0.0]]])
    far = torch.tensor([[[0.2, 0.4], [0.4, 0.3]], [[0.6, 0.9], [0.2, 0.9]]])
    quality = torch.stack((near, far), dim=2)[None]
    used = torch.tensor([[True, True], [True, False]])[:, None, None].expand(2, 2, 2, 2)
    # Sample 0: 0, .3 | 0 (the lead is .4 exactly), .4. Sample 1: .4 | .5; empty slots count not.
    expected = 0.3 + 0.4 + 0.4 + 0.5
    found = quality_margin(quality, used, 0.4)
    assert found.tolist() == pytest.approx([expected], abs=1e-5)


def test_margin_is_zero_beyond_the_lead() -> None:
    quality = torch.tensor([0.9, 0.4]).view(1, 1, 1, 2, 1)
    used = torch.ones(1, 1, 2, 1, dtype=torch.bool)
    assert float(quality_margin(quality, used, 0.4)) == 0.0
    assert math.isclose(float(quality_margin(quality, used, 0.6)), 0.1, abs_tol=1e-6)
