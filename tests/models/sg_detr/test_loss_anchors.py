"""Losses of the anchor head, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mrmodel.losses.span import focal_loss, smooth_l1
from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.sg_detr.loss_anchors import AnchorLoss
from mrmodel.models.sg_detr.output import AnchorHeads, AnchorTargets
from mrmodel.models.sg_detr.settings import SgDetrSettings

LN2 = math.log(2.0)
NAMES = ["atss/cls", "atss/l1", "atss/giou", "atss/centerness"]


def loss_of(kind: str = "focal", beta: float = 0.0) -> AnchorLoss:
    return AnchorLoss(SgDetrSettings(atss={"cls": kind}, loss={"smooth_l1_beta": beta}))


def case(padding: float = 0.0) -> tuple[AnchorHeads, AnchorTargets, PaddedWindows]:
    """One sample, windows [.3, .7] and [.1, .3]; an anchor each, a free one, and a missing one."""
    spans = torch.tensor([[[0.6, 0.4], [0.2, 0.4], [0.9, 0.1], [padding, 1.0]]])
    valid = torch.tensor([[True, True, True, False]])
    heads = AnchorHeads(
        logits=torch.tensor([[0.0, 0.0, 0.0, padding]]),
        spans_cxw=spans,
        centerness=torch.tensor([[math.log(3.0), math.log(3.0), 5.0, padding]]),
        features=torch.zeros(1, 4, 2),
        anchors_cxw=spans.clone(),
        valid=valid,
    )
    targets = AnchorTargets(torch.tensor([[0, 1, -1, -1]]), torch.tensor([[0.5, 1.0, 0.0, 0.0]]))
    true = torch.tensor([[[0.5, 0.4], [0.2, 0.2], [0.5, 0.5]]])
    return heads, targets, PaddedWindows(true, torch.tensor([[True, True, False]]), 2)


def values_of(losses: dict[str, Tensor]) -> list[float]:
    assert list(losses) == NAMES
    assert all(value.dtype == torch.float32 and value.dim() == 0 for value in losses.values())
    return [float(value.detach()) for value in losses.values()]


@pytest.mark.parametrize("padding", [0.0, 1e4])
def test_losses_by_hand(padding: float) -> None:
    found = values_of(loss_of()(*case(padding)))
    expected = [
        # Two positives .25 * .5^2 * ln 2, one background .75 * .5^2 * ln 2, over 2 positives.
        (2 * 0.0625 + 0.1875) * LN2 / 2,
        # Errors .1 and 0, mean .05, weight .5; 0 and .2, mean .1, weight 1.
        (0.05 * 0.5 + 0.1 * 1.0) / 1.5,
        # [.4, .8] and [.3, .7]: .3 / .5 = .6. [0, .4] and [.1, .3]: .2 / .4 = .5; hull = union.
        (0.4 * 0.5 + 0.5 * 1.0) / 1.5,
        # Probability .75 for the targets .5 and 1.
        (-0.5 * math.log(0.75) - 0.5 * math.log(0.25) - math.log(0.75)) / 2,
    ]
    assert found == pytest.approx(expected, abs=1e-6)


def test_cross_entropy_weighs_background_down() -> None:
    # Over 3 valid anchors: two positives, one background with .1.
    cls = loss_of("bce")(*case(1e4))["atss/cls"]
    assert float(cls) == pytest.approx((2 + 0.1) * LN2 / 3)


def test_small_errors_are_quadratic() -> None:
    # .5 * .1^2 / 2 = .0025, weight .5; .5 * .2^2 / 2 = .01, weight 1.
    l1 = loss_of(beta=1.0)(*case())["atss/l1"]
    assert float(l1) == pytest.approx((0.0025 * 0.5 + 0.01) / 1.5)


def test_few_weights_are_not_blown_up() -> None:
    heads, targets, windows = case()
    targets.window[0, 1], targets.centerness[0, 1] = -1, 0.0
    # Weight .5 in all, but the divisor stays 1.
    found = values_of(loss_of()(heads, targets, windows))
    assert found[1:3] == pytest.approx([0.05 * 0.5, 0.4 * 0.5])


@pytest.mark.parametrize("kind", ["focal", "bce"])
@pytest.mark.parametrize("table", [0, 2])
def test_without_windows_only_the_class_is_judged(kind: str, table: int) -> None:
    heads, targets, _ = case()
    leaves = [heads.logits, heads.spans_cxw, heads.centerness]
    for leaf in leaves:
        leaf.requires_grad_()
    targets = AnchorTargets(
        torch.full_like(targets.window, -1), torch.zeros_like(targets.centerness)
    )
    windows = PaddedWindows(
        torch.full((1, table, 2), 0.5), torch.zeros(1, table, dtype=torch.bool), 0
    )
    losses = loss_of(kind)(heads, targets, windows)
    found = values_of(losses)
    # Three backgrounds: .75 * .25 * ln 2 each over 1; or .1 * ln 2 in the mean.
    assert found[0] == pytest.approx(3 * 0.1875 * LN2 if kind == "focal" else 0.1 * LN2)
    assert found[1:] == [0.0, 0.0, 0.0]
    gradients = torch.autograd.grad(sum(losses.values()), leaves)  # type: ignore[arg-type]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert not gradients[1].any()
    assert not gradients[2].any()


def test_losses_are_float32_under_half_precision() -> None:
    heads, targets, windows = case()
    heads.logits, heads.centerness = heads.logits.bfloat16(), heads.centerness.bfloat16()
    heads.spans_cxw = heads.spans_cxw.bfloat16()
    values_of(loss_of()(heads, targets, windows))


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([math.log(3.0), math.log(3.0), -200.0, 200.0])
    found = focal_loss(logits, torch.tensor([1.0, 0.0, 1.0, 1.0])).tolist()
    # p = .75: .25 * .25^2 * -ln .75; .75 * .75^2 * -ln .25; an entropy of 200; and none.
    expected = [-(0.25**3) * math.log(0.75), -(0.75**3) * math.log(0.25), 0.25 * 200.0, 0.0]
    assert found == pytest.approx(expected, rel=1e-5)
    # gamma 0 and alpha one half is half the cross entropy.
    assert float(focal_loss(logits, logits * 0, 0.5, 0.0)[1]) == pytest.approx(math.log(4.0) / 2)


def test_smooth_l1_by_hand() -> None:
    error, none = torch.tensor([0.05, -0.3]), torch.zeros(2)
    assert smooth_l1(error, none, 1.0).tolist() == pytest.approx([0.00125, 0.045])
    # Beta .1: .5 * .05^2 / .1, and .3 - .05.
    assert smooth_l1(error, none, 0.1).tolist() == pytest.approx([0.0125, 0.25])
    assert smooth_l1(error, none, 0.0).tolist() == pytest.approx([0.05, 0.3])
