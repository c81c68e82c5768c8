"""A small whole SA-DETR away from its first values, and a look into its refiner's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from mrmodel.models import build_model
from mrmodel.models.layers.query_groups import JoinedQueries
from mrmodel.models.layers.span_refiner import SeenVideo
from mrmodel.models.sa_detr import MomentFinder, SaDetr
from mrmodel.models.sa_detr_output import SaDetrOutput, SaDetrTraining
from mrmodel.types import Batch, Targets
from tests.conformance.test_models import TEXT_DIM, VIDEO_DIM

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
    """Every parameter moves by `spread` from its first value, so that none of them is zero."""
    settings = dict(SMALL)
    for key, value in changes.items():
        is_section = isinstance(value, dict) and isinstance(SMALL.get(key), dict)
        settings[key] = SMALL[key] | value if is_section else value
    torch.manual_seed(3)
    model = cast("SaDetr", build_model("sa_detr", VIDEO_DIM, TEXT_DIM, settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn_like(parameter)
    return model


def finder_of(model: SaDetr) -> MomentFinder:
    assert model.finder is not None
    return model.finder


def train_pass(
    model: SaDetr, batch: Batch, targets: Targets | None, seed: int = 0
) -> tuple[SaDetrOutput, SaDetrTraining]:
    """One pass in training mode with the noise of `seed`."""
    torch.manual_seed(seed)
    output = model.train()(batch, targets)
    assert output.training is not None
    return output, output.training


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
