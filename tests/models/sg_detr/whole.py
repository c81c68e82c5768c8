"""A small whole SG-DETR away from its first values, and a look into its decoder's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from mrmodel.models.sg_detr.detector import Detector
from mrmodel.models.sg_detr.model import SgDetr
from tests.conformance.test_models import TEXT_DIM, VIDEO_DIM
from tests.models.small import away_from_the_start, merged

SMALL: dict[str, Any] = {
    "hidden": 16,
    "heads": 2,
    "ffn": 24,
    "queries": 4,
    "dropout": 0.0,
    "input_dropout": 0.0,
    "pool": {"layers": 1},
    "sgca": {"layers": 1},
    "encoder": {"layers": 1},
    "decoder": {"layers": 2},
    "dn": {"groups": 2},
    "atss": {"levels": 3},
}


def small_model(
    spread: float = 0.1, dims: tuple[int, int] = (VIDEO_DIM, TEXT_DIM), **changes: Any
) -> SgDetr:
    """See `away_from_the_start`."""
    settings = merged(SMALL, changes)
    if settings.get("detector") == "dab":
        del settings["dn"]
    return cast("SgDetr", away_from_the_start("sg_detr", settings, spread, dims))


def detector_of(model: SgDetr) -> Detector:
    assert model.detector is not None
    return model.detector


class DecoderInput:
    """What a model's decoder was given; `leaves` cuts its queries from what they come from."""

    queries: tuple[Tensor, Tensor]
    rest: tuple[Any, ...]

    def __init__(self, model: SgDetr, leaves: bool = False) -> None:
        self.leaves = leaves
        hook = cast("Callable[[nn.Module, Any], Any]", self._take)
        detector_of(model).decoder.register_forward_pre_hook(hook)

    def _take(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        content, spans = inputs[0]
        if self.leaves:
            content = content.detach().requires_grad_()
            spans = spans.detach().requires_grad_()
        self.queries, self.rest = (content, spans), inputs[1:]
        return (self.queries, *self.rest)
