"""A criterion is a list of named losses, their weights, and the weighted sum.

Layer losses apply to the windows of all decoder layers after matching; those of the last layer
have no suffix, those of the earlier ones ``_0``, ``_1`` ... Clip losses apply to the clip scores.
Without a matcher only the clip losses run (highlight-only data sets).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mrmodel.losses.matching import HungarianMatcher, Matching
from mrmodel.types import Batch, LayerOutput, ModelOutput, Targets


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Inputs available to a loss."""

    output: ModelOutput
    targets: Targets
    batch: Batch


class LayerLoss(Protocol):
    """A loss on the windows of decoder layers."""

    def __call__(
        self, layers: LayerOutput, matching: Matching, inputs: LossInputs
    ) -> dict[str, Tensor]:
        """Named losses of heads (K, B, Q, ...), one per layer: (K,)."""
        ...


class ClipLoss(Protocol):
    """A loss on the clip scores."""

    def __call__(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Named scalars."""
        ...


class Criterion(ABC):
    """Named losses of a batch, each unweighted, and their weighted sum.

    Weights may depend on the epoch, losses do not.
    """

    @abstractmethod
    def __call__(self, output: ModelOutput, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses by name, float32 scalars."""

    @abstractmethod
    def weight(self, name: str, epoch: int = 0) -> float:
        """Weight of a loss by its reported name; 0 if it is only reported.

        Args:
            name: of the loss.
            epoch: counted from 0; weights may grow with it.
        """

    def total(self, losses: Mapping[str, Tensor], epoch: int = 0) -> Tensor:
        """The weighted sum in this epoch, a scalar."""
        weights = {name: weight for name in losses if (weight := self.weight(name, epoch))}
        values = torch.stack([losses[name] for name in weights])
        factors = torch.tensor(list(weights.values())).to(values.device, non_blocking=True)
        return (factors * values).sum()


class DetrCriterion(Criterion):
    """The losses of a DETR: each decoder layer is matched separately, losses are batched.

    Args:
        layer_losses: losses on every supervised decoder layer.
        clip_losses: losses on the clip scores.
        weights: weight of each loss by its name without suffix; a loss without a weight is only
            reported.
        matcher: pairs queries with windows; None = clip losses only.
        growing: losses whose weight is multiplied by the epoch number, counted from 1.
    """

    def __init__(
        self,
        *,
        layer_losses: Sequence[LayerLoss],
        clip_losses: Sequence[ClipLoss],
        weights: Mapping[str, float],
        matcher: HungarianMatcher | None,
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
            layers = stack_layers((output.last, *output.aux))
            matching = self.matcher(layers, targets, batch)
            for layer_loss in self.layer_losses:
                for name, values in layer_loss(layers, matching, inputs).items():
                    last, *earlier = values.unbind()
                    losses[name] = last
                    losses |= {f"{name}_{i}": value for i, value in enumerate(earlier)}
        for clip_loss in self.clip_losses:
            losses |= clip_loss(inputs)
        return losses

    def weight(self, name: str, epoch: int = 0) -> float:
        """Weight of a loss by its reported name, e.g. ``span`` or ``span_0``; 0 if it has none."""
        base, _, layer = name.rpartition("_")
        weight = self.weights.get(base if layer.isdigit() else name, 0.0)
        return weight * (epoch + 1) if name in self.growing else weight


def stack_layers(layers: Sequence[LayerOutput]) -> LayerOutput:
    """Stack the heads of K layers: every tensor becomes (K, ...)."""
    return LayerOutput(
        torch.stack([layer.logits for layer in layers]),
        torch.stack([layer.spans_cxw for layer in layers]),
        {name: torch.stack([layer.extras[name] for layer in layers]) for name in layers[0].extras},
    )
