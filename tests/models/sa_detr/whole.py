"""A small whole SA-DETR away from its first values, and a look into its refiner's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from mrmodel.models.layers.query_groups import JoinedQueries
from mrmodel.models.sa_detr.model import MomentFinder, SaDetr
from mrmodel.models.sa_detr.span_refiner import SeenVideo
from tests.conformance.test_models import TEXT_DIM, VIDEO_DIM
from tests.models.small import away_from_the_start, merged

SMALL: dict[str, Any] = {
    "hidden": 16,
    "heads": 2,
    "ffn": 24,
    "dropout": 0.0,
    "input_dropout": 0.0,
    "init": {"queries": 4},
    "dn": {"groups": 2},
    "align": {"samples": 5},
}


def small_model(spread: float = 0.1, **changes: Any) -> SaDetr:
    """See `away_from_the_start`."""
    settings, dims = merged(SMALL, changes), (VIDEO_DIM, TEXT_DIM)
    return cast("SaDetr", away_from_the_start("sa_detr", settings, spread, dims))


def finder_of(model: SaDetr) -> MomentFinder:
    assert model.finder is not None
    return model.finder


class RefinerInput:
    """What a model's refiner was given; `leaves` cuts its queries from what they come from."""

    queries: JoinedQueries
    seen: SeenVideo

    def __init__(self, model: SaDetr, leaves: bool = False) -> None:
        self.leaves = leaves
        hook = cast("Callable[[nn.Module, Any], Any]", self._take)
        finder_of(model).refiner.register_forward_pre_hook(hook)

    def _take(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        queries, self.seen = inputs
        if self.leaves:
            content = queries.content.detach().requires_grad_()
            spans = queries.spans_cxw.detach().requires_grad_()
            queries = queries._replace(content=content, spans_cxw=spans)
        self.queries = queries
        return queries, self.seen

    def grad(self, total: Tensor) -> tuple[Tensor, ...]:
        leaves = (self.queries.content, self.queries.spans_cxw)
        return torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=False)
