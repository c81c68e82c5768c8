"""Losses and matching on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mrmodel.losses.criterion import DetrCriterion, LayerLoss, LossInputs, stack_layers
from mrmodel.losses.matching import HungarianMatcher, Matching, first_and_last_clip
from mrmodel.losses.saliency import (
    SaliencyMarginLoss,
    margin_loss,
    negative_pair_loss,
    rank_contrastive_loss,
)
from mrmodel.losses.span import ClipIndexLoss, ContrastiveLoss, LabelLoss, SpanLoss
from mrmodel.spans import aligned_giou, cxw_to_xx
from mrmodel.types import Batch, LayerOutput, ModelOutput, Targets


def batch_of(lengths: list[int]) -> Batch:
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    size, rows = len(lengths), torch.zeros(len(lengths), max(lengths), 1)
    return Batch(
        list(range(size)),
        ["v"] * size,
        rows,
        mask,
        rows,
        mask,
        [1.0] * size,
        [0.0] * size,
        2.0,
        ["t"] * size,
    )


def targets_of(spans: list[list[float]], counts: list[int], clips: int = 4) -> Targets:
    none = torch.zeros(len(counts), 0, dtype=torch.int64)
    labels = torch.zeros(len(counts), clips)
    return Targets(torch.tensor(spans).view(-1, 2), counts, none, none, labels)


def layer_of(spans: list[list[list[float]]], foreground: float = 0.0) -> LayerOutput:
    cxw = torch.tensor(spans)
    logits = torch.zeros(*cxw.shape[:2], 2)
    logits[..., 0] = foreground
    return LayerOutput(logits, cxw)


def inputs_of(layer: LayerOutput, targets: Targets, batch: Batch) -> LossInputs:
    output = ModelOutput(
        layer, layer.spans_cxw, layer.logits[..., 0], torch.zeros(batch.video_mask.shape)
    )
    return LossInputs(output, targets, batch)


def pairs(sample: list[int], query: list[int], window: list[int]) -> Matching:
    """Those of a single layer."""
    layer = [0] * len(sample)
    columns = (layer, sample, query, window)
    return Matching(*(torch.tensor([column], dtype=torch.int64) for column in columns))


def judge(
    loss: LayerLoss, layer: LayerOutput, matching: Matching, inputs: LossInputs
) -> dict[str, float]:
    """The losses of a single layer."""
    found = loss(stack_layers([layer]), matching, inputs)
    return {name: float(value.squeeze(0)) for name, value in found.items()}


MATCHER = HungarianMatcher(span=10.0, giou=1.0, foreground=4.0)


def test_matching_cost_of_a_pair() -> None:
    layer = layer_of([[[0.5, 0.2], [0.1, 0.2]]], foreground=math.log(3.0))
    targets = targets_of([[0.4, 0.4]], [1])
    cost = MATCHER.cost(stack_layers([layer]), targets, batch_of([4]))[0]
    giou = aligned_giou(cxw_to_xx(torch.tensor([0.5, 0.2])), cxw_to_xx(torch.tensor([0.4, 0.4])))
    assert float(cost[0, 0]) == pytest.approx(10 * 0.3 - float(giou) - 4 * 0.75, abs=1e-5)


def test_matching_is_the_cheapest_assignment_of_each_layer_and_sample() -> None:
    layer = layer_of([[[0.9, 0.1], [0.2, 0.1], [0.5, 0.1]], [[0.3, 0.3], [0.7, 0.3], [0.5, 0.9]]])
    targets = targets_of([[0.2, 0.1], [0.9, 0.1], [0.7, 0.3]], [2, 1])
    other = layer_of([[[0.2, 0.1], [0.5, 0.1], [0.9, 0.1]], [[0.7, 0.3], [0.3, 0.3], [0.5, 0.9]]])
    matching = MATCHER(stack_layers([layer, other]), targets, batch_of([4, 4]))
    assert matching.layer.tolist() == [[0] * 3, [1] * 3]
    assert matching.sample.tolist() == [[0, 0, 1]] * 2
    assert matching.query.tolist() == [[0, 1, 1], [0, 2, 0]]
    assert matching.window.tolist() == [[1, 0, 2], [0, 1, 2]]


def test_matching_without_windows_and_with_too_many() -> None:
    layer = layer_of([[[0.5, 0.2]], [[0.5, 0.2]]])
    targets = targets_of([[0.4, 0.2], [0.5, 0.2], [0.9, 0.1]], [0, 3])
    matching = MATCHER(stack_layers([layer]), targets, batch_of([4, 4]))
    assert matching.sample.tolist() == [[1]]
    assert matching.window.tolist() == [[1]]
    none = MATCHER(stack_layers([layer] * 2), targets_of([], [0, 0]), batch_of([4, 4]))
    assert none.window.shape == none.query.shape == (2, 0)


def test_clips_of_a_window_are_inclusive() -> None:
    targets = targets_of([[0.5, 0.5], [0.9, 0.2], [0.5, 1.0]], [1, 1, 1])
    clips = first_and_last_clip(targets, batch_of([4, 10, 3]))
    assert clips.tolist() == [[1, 2], [8, 9], [0, 2]]


def test_span_losses() -> None:
    layer = layer_of([[[0.5, 0.2], [0.3, 0.2]]])
    targets = targets_of([[0.4, 0.4]], [1])
    inputs = inputs_of(layer, targets, batch_of([4]))
    losses = judge(SpanLoss(), layer, pairs([0], [0], [0]), inputs)
    # (0.4, 0.6) against (0.2, 0.6): IoU 0.5, hull equals the union.
    assert losses == pytest.approx({"span": (0.1 + 0.2) / 2, "giou": 0.5})


def test_span_losses_without_windows_are_zero() -> None:
    layer = layer_of([[[0.5, 0.2]]])
    inputs = inputs_of(layer, targets_of([], [0]), batch_of([4]))
    losses = judge(SpanLoss(), layer, pairs([], [], []), inputs)
    assert losses == {"span": 0.0, "giou": 0.0}


def test_label_loss_is_a_plain_mean() -> None:
    layer = layer_of([[[0.5, 0.2], [0.3, 0.2]]])
    inputs = inputs_of(layer, targets_of([[0.4, 0.4]], [1]), batch_of([4]))
    losses = judge(LabelLoss(0.1), layer, pairs([0], [1], [0]), inputs)
    assert losses["label"] == pytest.approx((1.0 + 0.1) * math.log(2.0) / 2)
    layer.logits[0, 1] = torch.tensor([-1.0, 1.0])
    losses = judge(LabelLoss(0.1), layer, pairs([0], [1], [0]), inputs)
    assert losses["class_error"] == 100.0


def test_clip_index_loss() -> None:
    layer = layer_of([[[0.5, 0.5]]])
    layer.extras["start_end_logits"] = torch.zeros(1, 1, 2, 8)
    inputs = inputs_of(layer, targets_of([[0.5, 0.5]], [1]), batch_of([4]))
    losses = judge(ClipIndexLoss(), layer, pairs([0], [0], [0]), inputs)
    assert losses == pytest.approx({"span": math.log(8.0), "giou": 0.0})


def test_contrastive_loss_pulls_the_matched_query() -> None:
    layer = layer_of([[[0.5, 0.2], [0.3, 0.2]], [[0.5, 0.2], [0.3, 0.2]]])
    layer.extras["contrastive_query"] = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]] * 2)
    inputs = inputs_of(layer, targets_of([[0.4, 0.4]], [1, 0]), batch_of([4, 4]))
    inputs.output.extras["contrastive_text"] = torch.tensor([[1.0, 0.0]] * 2)
    loss = judge(ContrastiveLoss(0.5), layer, pairs([0], [0], [0]), inputs)["contrastive"]
    # Energies (2, 0); the second sample has no windows and counts as zero.
    assert loss == pytest.approx(math.log(math.exp(2) + 1) / 2 - 1.0, abs=1e-6)


def margin_targets(positive: list[list[int]], negative: list[list[int]]) -> Targets:
    targets = targets_of([], [0] * len(positive))
    targets.saliency_pos = torch.tensor(positive)
    targets.saliency_neg = torch.tensor(negative)
    return targets


def test_margin_loss() -> None:
    saliency = torch.tensor([[1.0, 0.0, 0.9, 5.0]])
    loss = margin_loss(saliency, margin_targets([[0, 2]], [[1, 0]]), 0.2)
    assert float(loss) == pytest.approx(2 * (0.0 + 0.3) / 2)
    assert float(margin_loss(saliency, targets_of([], [0]), 0.2)) == 0.0


def test_negative_pair_loss_sums_over_valid_clips_and_cannot_overflow() -> None:
    negative = torch.tensor([[0.0, 100.0, 3.0], [0.0, 0.0, 1.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = (math.log(2.0) + 100.0 + math.log(2.0)) / 2
    assert float(negative_pair_loss(negative, mask)) == pytest.approx(expected)


def published_rank_loss(scores: Tensor, labels: Tensor, mask: Tensor) -> float:
    """The published loop over levels, written out sample by sample."""
    total = 0.0
    for level in range(1, 12):
        if not (labels >= level).any():
            continue
        samples = []
        for row, label, valid in zip(scores, labels, mask, strict=True):
            logits = torch.where(valid, row, -1000.0) / 0.5
            logits = logits - logits.max()
            log_probability = logits - (logits.exp().sum() + 1e-6).log()
            positive = label >= level
            value = -(log_probability * positive * valid).sum() / (positive.sum() + 1e-6)
            samples.append(float(value) if positive.any() else 0.0)
        total += sum(samples) / len(samples)
    return total / 12


def test_rank_contrastive_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    saliency, negative = torch.randn(2, 3, 5, generator=generator)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])
    labels = torch.tensor([[0.0, 12, 3, 3, 7], [0, 0, 0, 0, 0], [1, 0, 2, 5, 0]])
    found = rank_contrastive_loss(saliency, negative, labels, mask)
    both = torch.cat((saliency, negative), 1)
    labels_both = torch.cat((labels, torch.zeros_like(labels)), 1)
    expected = published_rank_loss(both, labels_both, torch.cat((mask, mask), 1))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_criterion_names_and_weights() -> None:
    layer = layer_of([[[0.5, 0.2], [0.3, 0.2]]])
    batch, targets = batch_of([4]), targets_of([[0.4, 0.4]], [1])
    output = ModelOutput(
        layer, layer.spans_cxw, layer.logits[..., 0], torch.zeros(1, 4), aux=(layer,)
    )
    criterion = DetrCriterion(
        layer_losses=[SpanLoss(), LabelLoss(0.1)],
        clip_losses=[SaliencyMarginLoss(0.2)],
        weights={"span": 10.0, "label": 4.0},
        matcher=MATCHER,
    )
    losses = criterion(output, targets, batch)
    layer_names = ["span", "giou", "label", "class_error"]
    assert list(losses) == [*(n + s for n in layer_names for s in ("", "_0")), "saliency"]
    assert criterion.weight("span_0") == criterion.weight("span") == 10.0
    assert criterion.weight("class_error") == criterion.weight("giou") == 0.0
    expected = 2 * (10 * float(losses["span"]) + 4 * float(losses["label"]))
    assert float(criterion.total(losses)) == pytest.approx(expected)
