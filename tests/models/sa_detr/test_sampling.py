"""Temporal align, Gaussian masks and local block against plain arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mrmodel.models.layers.attention import attend, attend_by
from mrmodel.models.sa_detr.model import LocalBlock
from mrmodel.models.sa_detr.span_enhance import hat_weights, sample_points
from mrmodel.models.sa_detr.span_refiner import gaussian_mask, gaussian_weights
from tests.rounding import rounding

LENGTH, CLIPS = 9, (7, 9)


def random_spans(seed: int = 0) -> Tensor:
    """(2, 6, 2), two of them beyond the ends of the video."""
    spans = torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(seed))
    spans[:, 0] = torch.tensor([0.02, 0.3])
    spans[:, 1] = torch.tensor([0.99, 0.5])
    return spans


def interpolated(rows: Tensor, span: Tensor, clips: int, samples: int, expand: float) -> Tensor:
    """One span, one point after the other."""
    centre, width = float(span[0]), float(span[1]) * (1 + 2 * expand)
    found = []
    for j in range(samples):
        x = (centre - width / 2 + (j + 0.5) / samples * width) * clips - 0.5
        x = min(max(x, 0.0), clips - 1.0)
        low = min(math.floor(x), clips - 1)
        high = min(low + 1, clips - 1)
        found.append((1 - (x - low)) * rows[low] + (x - low) * rows[high])
    return torch.stack(found)


@pytest.mark.parametrize("expand", [0.0, 0.5])
@pytest.mark.parametrize("samples", [1, 4, 15])
def test_hat_matrix_is_linear_interpolation(samples: int, expand: float) -> None:
    rows, spans = torch.randn(2, LENGTH, 3), random_spans()
    points = sample_points(spans, torch.tensor(CLIPS), samples, expand)
    found = hat_weights(points, LENGTH) @ rows[:, None]
    for b, clips in enumerate(CLIPS):
        for p in range(6):
            expected = interpolated(rows[b], spans[b, p], clips, samples, expand)
            torch.testing.assert_close(found[b, p], expected, rtol=0, atol=1e-5)


def test_whole_video_at_one_point_a_clip_is_the_video() -> None:
    whole = torch.tensor([[[0.5, 1.0]]])
    weights = hat_weights(sample_points(whole, torch.tensor([LENGTH]), LENGTH), LENGTH)
    torch.testing.assert_close(weights[0, 0], torch.eye(LENGTH), rtol=0, atol=1e-5)


def test_weights_sum_to_one_and_never_touch_padding() -> None:
    weights = hat_weights(sample_points(random_spans(), torch.tensor(CLIPS), 10), LENGTH)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6, 10))
    assert not weights[0, ..., CLIPS[0] :].any()
    alone = hat_weights(sample_points(random_spans()[:1], torch.tensor(CLIPS[:1]), 10), CLIPS[0])
    assert torch.equal(weights[:1, ..., : CLIPS[0]], alone)


@pytest.mark.parametrize("offset", [0.5, 1.0])
def test_gaussian_by_the_formula(offset: float) -> None:
    spans, alpha = random_spans(), 2.0
    mask = gaussian_mask(spans, torch.tensor(CLIPS), LENGTH, alpha, offset)
    for b, clips in enumerate(CLIPS):
        for p in range(6):
            centre, width = map(float, spans[b, p])
            for i in range(clips):
                distance = ((i + offset) / clips - centre) / max(width, 1 / clips)
                expected = math.exp(max(-alpha * distance**2, -80.0))
                assert float(mask[b, p, i]) == pytest.approx(expected, rel=1e-4)


def test_gaussian_at_the_middle_at_the_ends_and_a_width_away() -> None:
    """Ten clips, middle of clip 5 as the centre: symmetric, falling, .61 at w/2 and .14 at w."""
    span = torch.tensor([[[0.55, 0.4]]])
    mask = gaussian_mask(span, torch.tensor([10]), 10, 2.0)[0, 0]
    assert float(mask[5]) == pytest.approx(1.0)
    torch.testing.assert_close(mask[1:5], mask[6:10].flip(0))
    assert (mask[5:-1] > mask[6:]).all()
    assert float(mask[7]) == pytest.approx(math.exp(-0.5), rel=1e-4)  # 0.2 = w / 2 away
    assert float(mask[9]) == pytest.approx(math.exp(-2.0), rel=1e-4)  # 0.4 = w away


def test_gaussian_moves_with_its_span() -> None:
    spans = torch.tensor([[[0.35, 0.2], [0.45, 0.2]]])
    mask = gaussian_mask(spans, torch.tensor([10]), 10, 2.0)[0]
    torch.testing.assert_close(mask[0, :-1], mask[1, 1:])


def test_gaussian_of_a_span_without_width_is_one_clip_wide() -> None:
    spans = torch.tensor([[[0.5, 0.0], [0.5, 0.1]]])
    mask = gaussian_mask(spans, torch.tensor([10]), 10, 2.0)[0]
    assert mask.isfinite().all()
    # Both are exp of the same numbers, but at other places of a vector.
    torch.testing.assert_close(mask[0], mask[1], rtol=0, atol=rounding(1))


def inputs(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"query": (2, 6, 8), "key": (2, LENGTH, 8), "value": (2, LENGTH, 4)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def reads_of(value: Tensor) -> Tensor:
    """Values that make attention return its own weights of one head."""
    return torch.eye(value.shape[1]).expand(len(value), -1, -1)


ALLOWED = (torch.arange(LENGTH) < torch.tensor(CLIPS)[:, None])[:, None, None]


@pytest.mark.parametrize("mode", ["mul_logits", "add_log", "none"])
def test_padding_has_no_weight(mode: Any) -> None:
    rows = inputs()
    mask = gaussian_mask(random_spans(), torch.tensor(CLIPS), LENGTH, 2.0)
    weigh = gaussian_weights(mode, mask, ALLOWED)
    weights = attend_by(rows["query"], rows["key"], reads_of(rows["value"]), 1, weigh)
    assert not weights[0, :, CLIPS[0] :].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6))


def test_log_mask_multiplies_the_weights_and_makes_them_sum_to_one() -> None:
    rows = inputs()
    mask = gaussian_mask(random_spans(), torch.tensor(CLIPS), LENGTH, 2.0)
    plain = attend(rows["query"], rows["key"], reads_of(rows["value"]), 1, ALLOWED)
    product = plain * mask
    expected = product / product.sum(-1, keepdim=True)
    weigh = gaussian_weights("add_log", mask, ALLOWED)
    found = attend_by(rows["query"], rows["key"], reads_of(rows["value"]), 1, weigh)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_multiplied_scores_are_softmax_of_the_product() -> None:
    rows = inputs()
    mask = gaussian_mask(random_spans(), torch.tensor(CLIPS), LENGTH, 2.0)
    scores = rows["query"] @ rows["key"].transpose(1, 2) / math.sqrt(8)
    expected = (scores * mask).masked_fill(~ALLOWED[:, 0], -torch.inf).softmax(-1)
    weigh = gaussian_weights("mul_logits", mask, ALLOWED)
    found = attend_by(rows["query"], rows["key"], reads_of(rows["value"]), 1, weigh)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", ["mul_logits", "add_log"])
def test_a_wide_span_leaves_plain_attention(mode: Any) -> None:
    rows = inputs()
    mask = gaussian_mask(torch.full((2, 6, 2), 1e3), torch.tensor(CLIPS), LENGTH, 1e-9)
    weigh = gaussian_weights(mode, mask, ALLOWED)
    found = attend_by(*rows.values(), 2, weigh)
    torch.testing.assert_close(found, attend(*rows.values(), 2, ALLOWED), rtol=0, atol=1e-5)


def test_a_span_far_from_every_clip_reads_something_finite() -> None:
    rows = inputs()
    mask = gaussian_mask(torch.full((2, 6, 2), 9.0) * torch.tensor([1.0, 0.0]), torch.tensor(CLIPS),
                         LENGTH, 2.0)  # fmt: skip
    for mode in ("mul_logits", "add_log"):
        found = attend_by(*rows.values(), 2, gaussian_weights(mode, mask, ALLOWED))  # type: ignore[arg-type]
        assert found.isfinite().all()


def block() -> LocalBlock:
    torch.manual_seed(0)
    return LocalBlock(6)


def test_local_block_is_three_convolutions() -> None:
    layer, rows = block(), torch.randn(2, LENGTH, 6)
    mask = ALLOWED[:, 0, 0]
    keep = mask[:, None].float()
    first = torch.nn.functional.conv1d(
        rows.transpose(1, 2) * keep, layer.first.weight[..., None], layer.first.bias
    )
    # The rows of the matrix hold the three taps one after the other.
    kernel = layer.middle.weight.view(6, 3, 6).transpose(1, 2)
    middle = torch.nn.functional.conv1d(first * keep, kernel, layer.middle.bias, padding=1)
    last = torch.nn.functional.conv1d(middle * keep, layer.last.weight[..., None], layer.last.bias)
    expected = rows + last.transpose(1, 2)
    torch.testing.assert_close(layer(rows, mask)[mask], expected[mask], rtol=0, atol=1e-5)


def test_receptive_field_is_three_clips() -> None:
    layer, rows = block(), torch.randn(1, LENGTH, 6, requires_grad=True)
    mixed = layer(rows, torch.ones(1, LENGTH, dtype=torch.bool))
    assert mixed.shape == rows.shape
    (gradient,) = torch.autograd.grad(mixed[0, 4].sum(), rows)
    assert torch.flatten(torch.nonzero(gradient[0].abs().sum(-1))).tolist() == [3, 4, 5]
