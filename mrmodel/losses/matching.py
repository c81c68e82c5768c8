"""One-to-one matching of predicted and true windows (baselines.md, section 6)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mrmodel.spans import aligned_giou, cxw_to_xx
from mrmodel.types import Batch, LayerOutput, Targets

FOREGROUND = 0


@dataclass(frozen=True, slots=True)
class Matching:
    """M matched pairs of a batch, sample after sample.

    Attributes:
        sample: (M,) index of the sample.
        query: (M,) index of the query in its sample, rising within a sample.
        window: (M,) index of the window in the stacked `Targets.spans_cxw`.
        counts: pairs of each sample.
    """

    sample: Tensor
    query: Tensor
    window: Tensor
    counts: list[int]


class Matcher(Protocol):
    """Chooses which query answers for which true window."""

    def __call__(self, layer: LayerOutput, targets: Targets, batch: Batch) -> Matching:
        """Match one decoder layer."""
        ...


class MatcherSettings(Protocol):
    """Weights of the three costs."""

    @property
    def span(self) -> float: ...  # noqa: D102
    @property
    def giou(self) -> float: ...  # noqa: D102
    @property
    def foreground(self) -> float: ...  # noqa: D102


class HungarianMatcher:
    """Least total cost of span L1 x 10, gIoU x -1 and foreground probability x -4.

    Where a layer has ``start_end_logits``, the span cost is minus the probability of the true first
    clip and the true last clip instead of L1 and gIoU.
    """

    def __init__(self, span: float, giou: float, foreground: float) -> None:
        self.span, self.giou, self.foreground = span, giou, foreground

    @classmethod
    def from_weights(cls, weights: MatcherSettings) -> HungarianMatcher:
        """A matcher with the weights of a settings section."""
        return cls(weights.span, weights.giou, weights.foreground)

    @torch.no_grad()
    def __call__(self, layer: LayerOutput, targets: Targets, batch: Batch) -> Matching:
        """Match the queries of each sample with its windows; (G) may be 0 and may exceed Q."""
        device = layer.logits.device
        # A broken model is reported by its losses, with the batch's ids, and not from in here.
        cost = self.cost(layer, targets, batch).nan_to_num(0.0, 1e9, -1e9).cpu().numpy()
        samples, queries, windows, counts = [], [], [], []
        for sample, columns in enumerate(_column_ranges(targets.span_counts)):
            rows, chosen = linear_sum_assignment(cost[:, columns])
            samples += [sample] * len(rows)
            queries += rows.tolist()
            windows += (chosen + columns.start).tolist()
            counts.append(len(rows))
        indices = torch.tensor((samples, queries, windows), dtype=torch.int64, device=device)
        return Matching(indices[0], indices[1], indices[2], counts)

    def cost(self, layer: LayerOutput, targets: Targets, batch: Batch) -> Tensor:
        """(Q, G): what it would cost each query to answer for window g of its own sample."""
        sample = window_samples(targets).to(layer.logits.device, non_blocking=True)
        probability = layer.logits.float().softmax(-1)[..., FOREGROUND]
        cost = -self.foreground * probability[sample]
        if "start_end_logits" in layer.extras:
            cost = cost - self.span * _boundary_probability(layer, targets, batch, sample)
        else:
            predicted, true = layer.spans_cxw.float()[sample], targets.spans_cxw[:, None]
            distance = (predicted - true).abs().sum(-1)
            cost = cost + self.span * distance
            cost = cost - self.giou * aligned_giou(cxw_to_xx(predicted), cxw_to_xx(true))
        return cost.transpose(0, 1)


def window_samples(targets: Targets) -> Tensor:
    """(G,) which sample each stacked window belongs to."""
    counts = torch.tensor(targets.span_counts)
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def first_and_last_clip(targets: Targets, batch: Batch) -> Tensor:
    """(G, 2) int64: the clips in which a window begins and ends, both inclusive."""
    device = targets.spans_cxw.device
    clips = batch.video_mask.sum(1).to(device)[window_samples(targets).to(device)]
    edges = cxw_to_xx(targets.spans_cxw) * clips[:, None]
    start, end = (edges + 1e-3).floor().long().unbind(-1)
    return torch.stack((start, end.minimum(clips) - 1), dim=-1)


def _boundary_probability(
    layer: LayerOutput, targets: Targets, batch: Batch, sample: Tensor
) -> Tensor:
    """(G, Q) probability of the true first clip plus that of the true last clip."""
    probability = layer.extras["start_end_logits"].float().softmax(-1)[sample]
    clips = first_and_last_clip(targets, batch)[:, None, :, None]
    index = clips.expand(-1, probability.shape[1], -1, -1)
    return probability.gather(-1, index).squeeze(-1).sum(-1)


def _column_ranges(counts: list[int]) -> list[slice]:
    stops = [0]
    for count in counts:
        stops.append(stops[-1] + count)
    return [slice(a, b) for a, b in pairwise(stops)]
