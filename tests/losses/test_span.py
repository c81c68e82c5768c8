"""Elementwise losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mrmodel.losses.span import focal_loss, smooth_l1, span_errors


def test_focal_loss() -> None:
    # p = 0.75: positive 0.25 * 0.25^2 * -ln 0.75, negative 0.75 * 0.75^2 * -ln 0.25
    logits = torch.full((2,), math.log(3.0))
    found = focal_loss(logits, torch.tensor([1.0, 0.0]))
    expected = [0.25 * 0.0625 * -math.log(0.75), 0.75 * 0.5625 * -math.log(0.25)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_without_focus_is_half_the_cross_entropy() -> None:
    logits, targets = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([1.0, 0.0, 1.0])
    expected = [0.5 * math.log1p(math.exp(x)) for x in (2.0, 0.5, -3.0)]
    assert focal_loss(logits, targets, 0.5, 0.0).tolist() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0.0, 1.0]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert bool(loss.isfinite().all())
    assert bool(gradient.isfinite().all())


def test_smooth_l1() -> None:
    predicted, true = torch.tensor([0.05, 0.3, -0.4]), torch.zeros(3)
    # beta 0.1: 0.05^2 / (2 * 0.1), then |x| - 0.05
    assert smooth_l1(predicted, true, 0.1).tolist() == pytest.approx([0.0125, 0.25, 0.35])
    assert smooth_l1(predicted, true, 1.0).tolist() == pytest.approx([0.00125, 0.045, 0.08])
    assert smooth_l1(predicted, true, 0.0).tolist() == pytest.approx([0.05, 0.3, 0.4])


def test_span_errors() -> None:
    # (0.4, 0.6) against (0.2, 0.6): errors 0.1 and 0.2, gIoU 1/2. (0, 0.2): no overlap,
    # gIoU 0, errors 0.3 and 0.2.
    predicted = torch.tensor([[0.5, 0.2], [0.1, 0.2]], requires_grad=True)
    absolute, apart = span_errors(predicted, torch.tensor([0.4, 0.4]).expand(2, 2))
    assert absolute.tolist() == pytest.approx([0.15, 0.25])
    assert apart.tolist() == pytest.approx([0.5, 1.0], abs=1e-6)


def test_losses_are_float32_in_half_precision() -> None:
    half = torch.tensor([0.5], dtype=torch.bfloat16)
    assert focal_loss(half, half).dtype == smooth_l1(half, half, 0.1).dtype == torch.float32
