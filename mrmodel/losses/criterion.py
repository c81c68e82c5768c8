"""A criterion is a list of named losses, their weights, and the weighted sum.

Layer losses judge the windows of one decoder layer after matching; they run on the last layer and,
with the suffix ``_0``, ``_1`` ..., on the earlier ones. Clip losses judge the clip scores and run
once. Without a matcher only the clip losses run (highlight-only data sets).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mrmodel.losses.matching import Matcher, Matching
from mrmodel.types import Batch, LayerOutput, ModelOutput, Targets


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What a loss may look at."""

    output: ModelOutput
    targets: Targets
    batch: Batch


class LayerLoss(Protocol):
    """Judges the windows of one decoder layer."""

    def __call__(
        self, layer: LayerOutput, matching: Matching, inputs: LossInputs
    ) -> dict[str, Tensor]:
        """Named scalars."""
        ...


class ClipLoss(Protocol):
    """Judges the clip scores."""

    def __call__(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Named scalars."""
        ...


class Criterion(ABC):
    """Named losses of a batch, each unweighted, and their weighted sum.

    Attributes:
        epoch: the epoch, counted from 0, that training is in; the loop sets it. Weights may
            depend on it, losses do not.
    """

    epoch: int = 0

    @abstractmethod
    def __call__(self, output: ModelOutput, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses by name, float32 scalars."""

    @abstractmethod
    def weight(self, name: str) -> float:
        """Weight of a loss as reported; 0 when it is only reported."""

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, a scalar to run backward from."""
        weighted = [
            self.weight(name) * value for name, value in losses.items() if self.weight(name)
        ]
        return sum(weighted[1:], start=weighted[0])


class DetrCriterion(Criterion):
    """The losses of a DETR whose layers are judged one by one.

    Args:
        layer_losses: run on every supervised decoder layer.
        clip_losses: run once.
        weights: weight of each loss by its name without suffix; a loss without a weight is only
            reported.
        matcher: pairs queries with windows; None = clip losses only.
        growing: losses whose weight is multiplied by the number of the epoch, counted from 1.
    """

    def __init__(
        self,
        *,
        layer_losses: Sequence[LayerLoss],
        clip_losses: Sequence[ClipLoss],
        weights: Mapping[str, float],
        matcher: Matcher | None,
        growing: Collection[str] = (),
    ) -> None:
        self.layer_losses, self.clip_losses = tuple(layer_losses), tuple(clip_losses)
        self.weights = dict(weights)
        self.matcher = matcher
        self.growing = frozenset(growing)

    def __call__(self, output: ModelOutput, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses by name, float32 scalars."""
        inputs = LossInputs(output, targets, batch)
        losses: dict[str, Tensor] = {}
        if self.matcher is not None:
            suffixes = ["", *(f"_{i}" for i in range(len(output.aux)))]
            for suffix, layer in zip(suffixes, (output.last, *output.aux), strict=True):
                matching = self.matcher(layer, targets, batch)
                for layer_loss in self.layer_losses:
                    named = layer_loss(layer, matching, inputs)
                    losses |= {name + suffix: value for name, value in named.items()}
        for clip_loss in self.clip_losses:
            losses |= clip_loss(inputs)
        return losses

    def weight(self, name: str) -> float:
        """Weight of a loss as reported, e.g. ``span`` or ``span_0``; 0 when it has none."""
        base, _, layer = name.rpartition("_")
        weight = self.weights.get(base if layer.isdigit() else name, 0.0)
        return weight * (self.epoch + 1) if name in self.growing else weight
