"""One-to-one matching of predicted and true windows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrmodel.spans import aligned_giou, cxw_to_xx
from mrmodel.types import Batch, LayerOutput, Targets

FOREGROUND = 0


@dataclass(frozen=True, slots=True)
class Matching:
    """M matched pairs in each of K decoder layers, ordered by sample.

    In every layer a sample has min(windows, queries) pairs.

    Attributes:
        layer: (K, M) index of the layer.
        sample: (K, M) index of the sample.
        query: (K, M) index of the query in its sample, ascending within a sample.
        window: (K, M) index of the window in the stacked `Targets.spans_cxw`.
    """

    layer: Tensor
    sample: Tensor
    query: Tensor
    window: Tensor

    @property
    def queries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Index that selects the matched rows (K, M, ...) of rows (K, B, Q, ...)."""
        return self.layer, self.sample, self.query


class HungarianMatcher:
    """Hungarian matching by span L1 x 10, gIoU x -1 and foreground probability x -4.

    If a layer has ``start_end_logits``, the span cost is minus the probability of the true first
    clip and the true last clip instead of L1 and gIoU.
    """

    def __init__(self, span: float, giou: float, foreground: float) -> None:
        self.span, self.giou, self.foreground = span, giou, foreground

    @torch.no_grad()
    def __call__(self, layers: LayerOutput, targets: Targets, batch: Batch) -> Matching:
        """Match the queries of each layer and sample with the sample's windows.

        A sample may have no windows, or more than Q.
        """
        # NaNs are reported later, by the loss check, which names the batch's ids.
        cost = self.cost(layers, targets, batch).nan_to_num(0.0, 1e9, -1e9).cpu().numpy()
        pairs = [
            _cheapest_pairs(of_layer[windows].T, layer, sample, windows.start)
            for layer, of_layer in enumerate(cost)
            for sample, windows in enumerate(_window_ranges(targets.span_counts))
        ]
        indices = torch.from_numpy(np.concatenate(pairs, axis=1))
        indices = indices.to(layers.logits.device, non_blocking=True)
        return Matching(*indices.view(len(indices), len(cost), -1).unbind())

    def cost(self, layers: LayerOutput, targets: Targets, batch: Batch) -> Tensor:
        """(K, G, Q) cost of each query for window g of the same sample."""
        sample = window_samples(targets).to(layers.logits.device, non_blocking=True)
        probability = layers.logits.float().softmax(-1)[..., FOREGROUND]
        cost = -self.foreground * probability[:, sample]
        if "start_end_logits" in layers.extras:
            return cost - self.span * _boundary_probability(layers, targets, batch, sample)
        predicted, true = layers.spans_cxw.float()[:, sample], targets.spans_cxw[:, None]
        cost = cost + self.span * (predicted - true).abs().sum(-1)
        return cost - self.giou * aligned_giou(cxw_to_xx(predicted), cxw_to_xx(true))


def window_samples(targets: Targets) -> Tensor:
    """(G,) sample index of each stacked window."""
    counts = torch.tensor(targets.span_counts)
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def first_and_last_clip(targets: Targets, batch: Batch) -> Tensor:
    """(G, 2) int64: first and last clip of each window, both inclusive."""
    device = targets.spans_cxw.device
    clips = batch.video_mask.sum(1).to(device)[window_samples(targets).to(device)]
    edges = cxw_to_xx(targets.spans_cxw) * clips[:, None]
    start, end = (edges + 1e-3).floor().long().unbind(-1)
    return torch.stack((start, end.minimum(clips) - 1), dim=-1)


def _boundary_probability(
    layers: LayerOutput, targets: Targets, batch: Batch, sample: Tensor
) -> Tensor:
    """(K, G, Q) probability of the true first clip plus that of the true last clip."""
    probability = layers.extras["start_end_logits"].float().softmax(-1)[:, sample]
    clips = first_and_last_clip(targets, batch)[:, None, :, None]
    index = clips.expand(*probability.shape[:-1], 1)
    return probability.gather(-1, index).squeeze(-1).sum(-1)


def _cheapest_pairs(
    cost: NDArray[np.float32], layer: int, sample: int, first_window: int
) -> NDArray[np.int64]:
    """(Q, windows of the sample) costs -> (4, pairs), the rows of a `Matching`."""
    from scipy.optimize import linear_sum_assignment  # Slow import (0.5 s), only for training.

    query, window = linear_sum_assignment(cost)
    constant = np.full_like(query, layer), np.full_like(query, sample)
    return np.stack((*constant, query, first_window + window))


def _window_ranges(counts: list[int]) -> list[slice]:
    """Slices of each sample's windows within the stack."""
    stops = [0]
    for count in counts:
        stops.append(stops[-1] + count)
    return [slice(a, b) for a, b in pairwise(stops)]
