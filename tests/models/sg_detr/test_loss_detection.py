"""Detection losses of a group of queries, on numbers small enough to work out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sg_detr.loss_detection import (
    DetectionLoss,
    GroupTruth,
    known_truth,
    matched_truth,
)
from mrmodel.models.sg_detr.output import Heads
from mrmodel.models.sg_detr.settings import SgDetrSettings

LOGITS = [math.log(3.0), 0.0, -math.log(3.0)]  # p = 3/4, 1/2, 1/4
# Spans (0.4, 0.6), (0.7, 0.9), (0, 0.2); the true window is (0.2, 0.6), the first one is matched.
SPANS = [[0.5, 0.2], [0.8, 0.2], [0.1, 0.2]]
TRUE = [0.4, 0.4]
MATCH = torch.tensor([[[0, -1, -1]]])
LN2, LN4, LN43 = math.log(2.0), math.log(4.0), math.log(4.0 / 3.0)


def loss_of(**values: Any) -> DetectionLoss:
    return DetectionLoss(SgDetrSettings.model_validate({"loss": values}))


def heads_of(layers: int = 1, samples: int = 1) -> Heads:
    shape = (layers, samples, 3)
    return Heads(
        torch.tensor(LOGITS).expand(shape).clone(),
        torch.tensor(SPANS).expand(*shape, 2).clone(),
        torch.tensor(LOGITS).expand(shape).clone(),
    )


def one_window() -> PaddedWindows:
    return PaddedWindows(torch.tensor([[TRUE]]), torch.ones(1, 1, dtype=torch.bool), 1)


def no_windows(samples: int = 1, room: int = 0) -> PaddedWindows:
    nothing = torch.zeros(samples, room, dtype=torch.bool)
    return PaddedWindows(torch.full((samples, room, 2), 0.5), nothing, 0)


def random_case(seed: int = 0) -> tuple[Heads, PaddedWindows, Tensor, Tensor]:
    """Two layers, three samples with 2, 0, 1 windows, five slots, of which some are unused."""
    generator = torch.Generator().manual_seed(seed)
    logits, iou_logits = torch.randn(2, 2, 3, 5, generator=generator)
    spans = 0.02 + 0.96 * torch.rand(2, 3, 5, 2, generator=generator)
    valid = torch.tensor([[True, True], [False, False], [True, False]])
    true = torch.rand(3, 2, 2, generator=generator)
    windows = PaddedWindows(torch.where(valid[..., None], true, 0.5), valid, 3)
    used = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])
    match = torch.full((2, 3, 5), -1)
    match[0, 0, 3], match[0, 0, 1], match[0, 2, 0] = 0, 1, 0
    match[1, 0, 2], match[1, 0, 0], match[1, 2, 3] = 1, 0, 0
    return Heads(logits, spans, iou_logits), windows, match, used


def settings_of_every_kind() -> list[dict[str, Any]]:
    return [
        {"cls": {"kind": kind, "norm": norm}, "iou_target": target}
        for kind in ("bce", "focal", "qfl")
        for norm in ("queries", "gt")
        for target in ("max", "matched")
    ]


def class_sums() -> dict[str, float]:
    """Sum of the class losses over the three queries; IoU with the own window is 1/2.

    bce: ln 4/3 + 0.1 (ln 2 + ln 4/3).
    focal: 0.25 (1/4)^2 ln 4/3 + 0.75 ((1/2)^2 ln 2 + (1/4)^2 ln 4/3).
    qfl: (3/4 - 1/2)^2 (ln 4/3 + ln 4) / 2 + (1/2)^2 ln 2 + (1/4)^2 ln 4/3.
    """
    return {
        "bce": LN43 + 0.1 * (LN2 + LN43),
        "focal": 0.25 * LN43 / 16 + 0.75 * (LN2 / 4 + LN43 / 16),
        "qfl": (LN43 + LN4) / 32 + LN2 / 4 + LN43 / 16,
    }


@pytest.mark.parametrize("kind", ["bce", "focal", "qfl"])
def test_class_losses(kind: str) -> None:
    windows, expected = one_window(), class_sums()[kind]
    truth = matched_truth(MATCH, windows)
    mean = loss_of(cls={"kind": kind, "norm": "queries"})(heads_of(), truth, windows)["cls"]
    assert mean.tolist() == pytest.approx([expected / 3])
    over_windows = loss_of(cls={"kind": kind, "norm": "gt"})(heads_of(), truth, windows)["cls"]
    assert over_windows.tolist() == pytest.approx([expected])


def test_norms_count_the_whole_batch() -> None:
    # The second sample has two windows and no matched query: bce 0.1 (ln 4/3 + ln 2 + ln 4/3 + ..).
    two = PaddedWindows(
        torch.tensor([[TRUE, [0.5, 0.5]], [[0.9, 0.1], [0.2, 0.1]]]),
        torch.tensor([[True, False], [True, True]]),
        3,
    )
    match = torch.tensor([[[0, -1, -1], [-1, -1, -1]]])
    total = class_sums()["bce"] + 0.1 * (LN4 + LN2 + LN43)
    heads, truth = heads_of(samples=2), matched_truth(match, two)
    assert loss_of()(heads, truth, two)["cls"].tolist() == pytest.approx([total / 6])
    found = loss_of(cls={"norm": "gt"})(heads, truth, two)
    assert found["cls"].tolist() == pytest.approx([total / 3])
    assert found["giou"].tolist() == pytest.approx([0.5 / 3])
    # Only four of the six slots are used: the two unused ones are left out of sum and count.
    used = torch.tensor([[True, True, False], [True, True, False]])
    total = LN43 + 0.1 * (LN2 + LN4 + LN2)
    found = loss_of()(heads, matched_truth(match, two, used), two)
    assert found["cls"].tolist() == pytest.approx([total / 4])


def test_weight_of_background() -> None:
    windows = one_window()
    found = loss_of(cls={"eos": 0.5})(heads_of(), matched_truth(MATCH, windows), windows)["cls"]
    assert found.tolist() == pytest.approx([(LN43 + 0.5 * (LN2 + LN43)) / 3])


@pytest.mark.parametrize(
    ("beta", "expected"),
    # Errors 0.1 and 0.2: halves of squares; (0.1 - 0.05, 0.2 - 0.05); the errors themselves.
    [(1.0, (0.005 + 0.02) / 2), (0.1, (0.05 + 0.15) / 2), (0.0, (0.1 + 0.2) / 2)],
)
def test_span_loss(beta: float, expected: float) -> None:
    windows = one_window()
    found = loss_of(smooth_l1_beta=beta)(heads_of(), matched_truth(MATCH, windows), windows)
    assert found["l1"].tolist() == pytest.approx([expected])


def test_giou_loss_of_each_layer() -> None:
    # (0.4, 0.6) in (0.2, 0.6): 1/2. (0.7, 0.9): no overlap, union 0.6, hull 0.7, so gIoU -1/7.
    windows, match = one_window(), torch.tensor([[[0, -1, -1]], [[-1, 0, -1]], [[-1, -1, -1]]])
    found = loss_of()(heads_of(3), matched_truth(match, windows), windows)
    assert found["giou"].tolist() == pytest.approx([0.5, 1 + 1 / 7, 0.0])


def test_iou_loss() -> None:
    # IoU with the window: 1/2, 0, 0. Cross entropies with p = 3/4, 1/2, 1/4.
    windows = one_window()
    truth = matched_truth(MATCH, windows)
    own = (LN43 + LN4) / 2
    found = loss_of(iou_target="max")(heads_of(), truth, windows)["iou"]
    assert found.tolist() == pytest.approx([(own + LN2 + LN43) / 3])
    found = loss_of(iou_target="matched")(heads_of(), truth, windows)["iou"]
    assert found.tolist() == pytest.approx([own])


def test_iou_target_is_the_best_window_of_the_sample() -> None:
    # The matched query overlaps its own window by 0, another by 1/2; and (0.7, 0.9) with itself 1.
    spans = torch.tensor([[[0.95, 0.1], TRUE, [0.8, 0.2], [0.1, 0.2]]])
    windows = PaddedWindows(spans, torch.tensor([[True, True, True, False]]), 3)
    truth = matched_truth(MATCH, windows)
    found = loss_of(iou_target="max")(heads_of(), truth, windows)["iou"]
    assert found.tolist() == pytest.approx([((LN43 + LN4) / 2 + LN2 + LN43) / 3])
    # A window that is only padding: query 3 equals it, but its target stays 0 (ln 4/3 above).
    found = loss_of(iou_target="matched")(heads_of(), truth, windows)["iou"]
    assert found.tolist() == pytest.approx([LN4])


def test_targets_carry_no_gradient() -> None:
    heads, windows = heads_of(), one_window()
    heads.spans_cxw.requires_grad_()
    heads.logits.requires_grad_()
    truth = matched_truth(MATCH, windows)
    found = loss_of(cls={"kind": "qfl"})(heads, truth, windows)
    assert not found["iou"].requires_grad
    assert torch.autograd.grad(found["cls"].sum(), heads.spans_cxw, allow_unused=True) == (None,)


def test_denoising_normalisers() -> None:
    # One window, two groups of (positive, negative): G x groups = 2. The second sample has no
    # windows, so its four slots are unused.
    heads = Heads(
        torch.tensor([[[*LOGITS, 0.0], [9.0] * 4]]),
        torch.tensor([[[*SPANS, [0.4, 0.4]], [[0.5, 0.5]] * 4]]),
        torch.tensor([[[*LOGITS, 0.0], [9.0] * 4]]),
    )
    windows = PaddedWindows(
        torch.tensor([[TRUE], [[0.5, 0.5]]]), torch.tensor([[True], [False]]), 1
    )
    positive = torch.tensor([[True, False, True, False], [False] * 4])
    used = torch.tensor([[True] * 4, [False] * 4])
    queries = LabelledQueries(
        heads.spans_cxw[0], torch.zeros(2, 4, dtype=torch.int64), positive, used
    )
    truth = known_truth(queries)
    found = loss_of(smooth_l1_beta=0.0)(heads, truth, windows)
    # p = 3/4 positive, 1/2 negative, 1/4 positive, 1/2 negative, each with weight 1.
    classes = LN43 + LN2 + LN4 + LN2
    assert found["cls"].tolist() == pytest.approx([classes / 4])
    # (0.5, 0.2) is off by 0.1 and 0.2, (0.1, 0.2) by 0.3 and 0.2.
    assert found["l1"].tolist() == pytest.approx([(0.15 + 0.25) / 2])
    # (0, 0.2) touches (0.2, 0.6): gIoU 0.
    assert found["giou"].tolist() == pytest.approx([(0.5 + 1.0) / 2])
    # Positives only, with their own window: IoU 1/2 at p = 3/4, IoU 0 at p = 1/4.
    assert found["iou"].tolist() == pytest.approx([((LN43 + LN4) / 2 + LN43) / 2])
    over_windows = loss_of(cls={"norm": "gt"})(heads, truth, windows)
    assert over_windows["cls"].tolist() == pytest.approx([classes / 2])


def test_auxiliary_normalisers() -> None:
    # Both queries of the first sample answer for windows 1 and 0, one of the second for 0.
    spans = torch.tensor([[[0.5, 0.2], [0.8, 0.2]], [[0.5, 0.2], [0.5, 0.5]]])
    heads = Heads(torch.zeros(2, 2, 2), spans.expand(2, -1, -1, -1), torch.zeros(2, 2, 2))
    windows = PaddedWindows(
        torch.tensor([[[0.8, 0.2], [0.4, 0.4]], [[0.5, 0.4], [0.5, 0.5]]]),
        torch.tensor([[True, True], [True, False]]),
        3,
    )
    positive = torch.tensor([[True, True], [True, False]])
    queries = LabelledQueries(spans, torch.tensor([[1, 0], [0, 0]]), positive, positive)
    found = loss_of(smooth_l1_beta=0.0)(heads, known_truth(queries), windows)
    assert found["cls"].tolist() == pytest.approx([LN2] * 2)
    # Errors (0.1, 0.2), none, (0, 0.2); IoU 1/2, 1, 1/2; three positive slots.
    assert found["l1"].tolist() == pytest.approx([(0.15 + 0.0 + 0.1) / 3] * 2, abs=1e-6)
    assert found["giou"].tolist() == pytest.approx([(0.5 + 0.0 + 0.5) / 3] * 2, abs=1e-6)
    assert found["iou"].tolist() == pytest.approx([LN2] * 2)


@pytest.mark.parametrize("room", [0, 2])
def test_without_windows(room: int) -> None:
    heads, windows = heads_of(2, 2), no_windows(2, room)
    for tensor in (heads.logits, heads.spans_cxw, heads.iou_logits):
        assert tensor is not None
        tensor.requires_grad_()
    truth = matched_truth(torch.full((2, 2, 3), -1), windows)
    for values in settings_of_every_kind():
        found = loss_of(**values)(heads, truth, windows)
        assert found["l1"].tolist() == found["giou"].tolist() == [0.0, 0.0]
        assert all(bool(value.isfinite().all()) for value in found.values())
        assert found["l1"].requires_grad
        assert found["iou"].requires_grad
    found = loss_of()(heads, truth, windows)
    assert found["cls"].tolist() == pytest.approx([0.1 * (LN4 + LN2 + LN43) / 3] * 2)
    assert found["iou"].tolist() == pytest.approx([(LN4 + LN2 + LN43) / 3] * 2)
    matched = loss_of(iou_target="matched")(heads, truth, windows)["iou"]
    assert matched.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("slots", [0, 3])
def test_a_group_without_used_slots_is_zero(slots: int) -> None:
    heads = heads_of(2)
    assert heads.iou_logits is not None
    heads = Heads(heads.logits[..., :slots], heads.spans_cxw[:, :, :slots], heads.iou_logits)
    heads.iou_logits = heads.logits.clone()
    heads.logits.requires_grad_()
    nothing = torch.zeros(1, slots, dtype=torch.bool)
    queries = LabelledQueries(heads.spans_cxw[0], nothing.long(), nothing, nothing)
    for truth in (known_truth(queries), GroupTruth(-torch.ones(2, 1, slots).long(), nothing, 1.0)):
        for values in settings_of_every_kind():
            found = loss_of(**values)(heads, truth, one_window())
            assert found["cls"].requires_grad
            assert {name: value.tolist() for name, value in found.items()} == {
                name: [0.0, 0.0] for name in ("cls", "l1", "giou", "iou")
            }


def test_without_iou_head_there_is_no_iou_loss() -> None:
    heads, windows = heads_of(), one_window()
    heads.iou_logits = None
    assert set(loss_of()(heads, matched_truth(MATCH, windows), windows)) == {"cls", "l1", "giou"}


@pytest.mark.parametrize("values", settings_of_every_kind(), ids=str)
def test_padding_changes_nothing(values: dict[str, Any]) -> None:
    heads, windows, match, used = random_case()
    loss = loss_of(**values)
    expected = loss(heads, matched_truth(match, windows, used), windows)
    assert heads.iou_logits is not None
    wider = Heads(
        pad(heads.logits, (0, 2), value=1e4),
        pad(heads.spans_cxw, (0, 0, 0, 2), value=torch.nan),
        pad(heads.iou_logits, (0, 2), value=torch.nan),
    )
    unused = ~pad(used, (0, 2))
    for tensor in (wider.logits, wider.spans_cxw):
        tensor[:, unused] = torch.nan
    more = PaddedWindows(pad(windows.spans_cxw, (0, 0, 0, 3)), pad(windows.valid, (0, 3)), 3)
    more.spans_cxw[~more.valid] = torch.nan
    found = loss(wider, matched_truth(pad(match, (0, 2), value=1), more, ~unused), more)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("values", settings_of_every_kind(), ids=str)
def test_gradient_reaches_used_slots_only(values: dict[str, Any]) -> None:
    heads, windows, match, used = random_case()
    assert heads.iou_logits is not None
    heads.logits[:, ~used] = heads.spans_cxw[:, ~used] = torch.nan
    leaves = [x.requires_grad_() for x in (heads.logits, heads.spans_cxw, heads.iou_logits)]
    found = loss_of(**values)(heads, matched_truth(match, windows, used), windows)
    total = torch.stack(tuple(found.values())).sum()
    of_class, of_spans, of_iou = torch.autograd.grad(total, leaves)
    assert torch.equal(of_class != 0, used.expand(2, -1, -1))
    assert torch.equal((of_spans != 0).all(-1), match >= 0)
    assert torch.equal((of_spans != 0).any(-1), match >= 0)
    judged = used.expand(2, -1, -1) if values["iou_target"] == "max" else match >= 0
    assert torch.equal(of_iou != 0, judged)


def test_layers_and_order_of_samples() -> None:
    heads, windows, match, used = random_case()
    expected = loss_of()(heads, matched_truth(match, windows, used), windows)
    assert heads.iou_logits is not None
    order = [2, 0, 1]
    moved = Heads(heads.logits[:, order], heads.spans_cxw[:, order], heads.iou_logits[:, order])
    table = PaddedWindows(windows.spans_cxw[order], windows.valid[order], 3)
    found = loss_of()(moved, matched_truth(match[:, order], table, used[order]), table)
    last = Heads(heads.logits[1:], heads.spans_cxw[1:], heads.iou_logits[1:])
    alone = loss_of()(last, matched_truth(match[1:], windows, used), windows)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
        torch.testing.assert_close(alone[name], value[1:], msg=name)
