"""Spans on a line against plain arithmetic, on random and on degenerate spans."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrmodel.spans import (
    aligned_giou,
    aligned_iou,
    cxw_to_xx,
    inverse_sigmoid,
    xx_to_cxw,
)

Span = tuple[float, float]
few = settings(max_examples=60, deadline=None)

# Multiples of 1/64 are exact in float32, so that touching and equal ends really are; a span may be
# empty, and may stick out of [0, 1] as a decoded one does.
ENDS = st.integers(-16, 80)
SPANS = st.tuples(ENDS, ENDS).map(lambda ends: (min(ends) / 64, max(ends) / 64))


def plain_iou(first: Span, second: Span) -> float:
    shared = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    union = (first[1] - first[0]) + (second[1] - second[0]) - shared
    return shared / union if union > 0 else 0.0


def plain_giou(first: Span, second: Span) -> float:
    shared = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    union = (first[1] - first[0]) + (second[1] - second[0]) - shared
    hull = max(first[1], second[1]) - min(first[0], second[0])
    return plain_iou(first, second) - ((hull - union) / hull if hull > 0 else 0.0)


def both(
    function: Callable[[Tensor, Tensor], Tensor], first: Span, second: Span
) -> tuple[float, float]:
    """The function of a pair and of the pair the other way round."""
    one, other = torch.tensor([first, second]), torch.tensor([second, first])
    forth, back = function(one, other).tolist()
    return forth, back


@few
@given(SPANS, SPANS)
@example((0.25, 0.25), (0.25, 0.25))
@example((0.25, 0.25), (0.75, 0.75))
@example((0.25, 0.25), (0.0, 0.5))
@example((0.0, 0.25), (0.25, 0.5))
def test_iou_and_giou_agree_with_plain_arithmetic(first: Span, second: Span) -> None:
    iou, iou_back = both(aligned_iou, first, second)
    giou, giou_back = both(aligned_giou, first, second)
    assert (iou, giou) == (iou_back, giou_back)
    assert iou == pytest.approx(plain_iou(first, second), abs=1e-6)
    assert giou == pytest.approx(plain_giou(first, second), abs=1e-6)


@few
@given(SPANS, SPANS)
def test_ranges(first: Span, second: Span) -> None:
    iou, _ = both(aligned_iou, first, second)
    giou, _ = both(aligned_giou, first, second)
    assert 0.0 <= iou <= 1.0
    assert -1.0 <= giou <= iou
    if min(first[1], second[1]) < max(first[0], second[0]):
        assert iou == 0.0
        assert giou < 0.0
    elif max(first[1] - first[0], second[1] - second[0]) > 0:
        # They touch or overlap: nothing of the hull is left over.
        assert giou == pytest.approx(iou, abs=1e-6)


@few
@given(st.floats(0.0, 1.0, width=32), st.floats(2.0**-10, 1.0, width=32))
def test_a_span_with_itself(centre: float, width: float) -> None:
    span = cxw_to_xx(torch.tensor([centre, width]))
    assert float(aligned_iou(span, span)) == pytest.approx(1.0, abs=1e-6)
    assert float(aligned_giou(span, span)) == pytest.approx(1.0, abs=1e-6)


def test_degenerate_spans_by_hand() -> None:
    first = torch.tensor([[0.3, 0.3], [0.3, 0.3], [0.3, 0.3], [0.0, 1.0]])
    second = torch.tensor([[0.3, 0.3], [0.8, 0.8], [0.1, 0.5], [0.0, 0.0]])
    assert aligned_iou(first, second).tolist() == [0.0, 0.0, 0.0, 0.0]
    # The same point twice; all of the hull is left over; a point in, or at the end of, a span.
    assert aligned_giou(first, second).tolist() == pytest.approx([0.0, -1.0, 0.0, 0.0])


def test_degenerate_spans_have_finite_gradients() -> None:
    points = torch.tensor([[0.3, 0.3], [0.3, 0.3], [0.1, 0.5]], requires_grad=True)
    others = torch.tensor([[0.3, 0.3], [0.8, 0.8], [0.3, 0.3]])
    for function in (aligned_iou, aligned_giou):
        (gradient,) = torch.autograd.grad(function(points, others).sum(), points)
        assert bool(gradient.isfinite().all())


@few
@given(st.floats(-1.0, 2.0, width=32), st.floats(0.0, 1.0, width=32))
def test_conversion_round_trip(centre: float, width: float) -> None:
    cxw = torch.tensor([[centre, width]])
    assert xx_to_cxw(cxw_to_xx(cxw))[0].tolist() == pytest.approx([centre, width], abs=1e-6)
    start, end = cxw_to_xx(cxw)[0].tolist()
    assert (start, end) == pytest.approx((centre - width / 2, centre + width / 2), abs=1e-6)


@few
@given(st.lists(SPANS, max_size=4), st.lists(SPANS, max_size=4))
def test_spans_that_broadcast_give_every_pair(first: list[Span], second: list[Span]) -> None:
    rows, columns = (torch.tensor(spans).view(-1, 2) for spans in (first, second))
    for aligned in (aligned_iou, aligned_giou):
        table = aligned(rows[:, None], columns[None, :])
        assert table.shape == (len(first), len(second))
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                assert float(table[i, j]) == pytest.approx(float(aligned(row, column)), abs=1e-6)


def central_differences(function: Callable[[Span, Span], float], cxw: Span, other: Span) -> Span:
    """Slopes in (centre, width), in the float64 of plain arithmetic."""

    def at(centre: float, width: float) -> float:
        return function((centre - width / 2, centre + width / 2), other)

    (centre, width), step = cxw, 1e-6
    return (
        (at(centre + step, width) - at(centre - step, width)) / (2 * step),
        (at(centre, width + step) - at(centre, width - step)) / (2 * step),
    )


@few
@given(SPANS, SPANS)
def test_gradients_agree_with_central_differences(first: Span, second: Span) -> None:
    # The functions are float32 by contract, too coarse for finite differences of themselves: their
    # exact gradient is held against the differences of the plain float64 arithmetic above.
    ends = (*first, *second)
    assume(all(abs(a - b) > 1e-3 for i, a in enumerate(ends) for b in ends[:i]))
    cxw = xx_to_cxw(torch.tensor(first)).requires_grad_()
    for function, plain in ((aligned_iou, plain_iou), (aligned_giou, plain_giou)):
        (gradient,) = torch.autograd.grad(function(cxw_to_xx(cxw), torch.tensor(second)), cxw)
        centre, width = cxw.tolist()
        expected = central_differences(plain, (centre, width), second)
        assert gradient.tolist() == pytest.approx(expected, abs=1e-3, rel=1e-4)


@few
@given(st.floats(2.0**-9, 1.0 - 2.0**-9, width=32))
def test_inverse_sigmoid_round_trip(value: float) -> None:
    assert float(inverse_sigmoid(torch.tensor(value)).sigmoid()) == pytest.approx(value, abs=1e-6)


def test_inverse_sigmoid_is_bounded() -> None:
    values = torch.tensor([-3.0, 0.0, 1e-9, 0.5, 1.0, 7.0], requires_grad=True)
    logits = inverse_sigmoid(values)
    # log(0.001 / 1) and log(1 / 0.001)
    bound = 6.907755
    assert logits.tolist() == pytest.approx([-bound, -bound, -bound, 0.0, bound, bound], abs=1e-5)
    (gradient,) = torch.autograd.grad(logits.sum(), values)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("function", [aligned_iou, aligned_giou])
def test_half_precision_is_computed_in_float32(
    function: Callable[[Tensor, Tensor], Tensor],
) -> None:
    # 0.5 and 0.50390625 are neighbours in bfloat16; their union could not be told from 1/256 there.
    first = torch.tensor([0.5, 0.50390625], dtype=torch.bfloat16)
    second = torch.tensor([0.25, 0.50390625], dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = function(first, second)
        assert cxw_to_xx(first).dtype == xx_to_cxw(first).dtype == found.dtype == torch.float32
    assert float(found) == pytest.approx(0.00390625 / 0.25390625, rel=1e-5)
