"""What the tests of whole models share: small ones, away from their first values."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mrmodel.models import MomentModel, build_model
from mrmodel.types import Batch, ModelOutput, Targets
from tests.conformance.test_models import (
    TEXT_DIM,
    VIDEO_DIM,
    evaluate,
    make_batch,
    make_targets,
    total_loss,
)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes; a section is changed key by key."""
    settings = dict(base)
    for key, value in changes.items():
        is_section = isinstance(value, dict) and isinstance(base.get(key), dict)
        settings[key] = base[key] | value if is_section else value
    return settings


def away_from_the_start(
    name: str, settings: Mapping[str, Any], spread: float, dims: tuple[int, int]
) -> MomentModel:
    """Every parameter moves by `spread` from its first value, so that none of them is zero."""
    torch.manual_seed(3)
    model = build_model(name, *dims, settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn_like(parameter)
    return model


def train_pass(
    model: MomentModel,
    batch: Batch,
    targets: Targets | None,
    seed: int = 0,
    progress: float = 0.0,
) -> tuple[Any, Any]:
    """Output and training parts of one pass in training mode with the noise of `seed`."""
    torch.manual_seed(seed)
    output: Any = model.train()(batch, targets, progress)
    assert output.training is not None
    return output, output.training


def assert_bit_equal(first: ModelOutput, second: ModelOutput) -> None:
    assert torch.equal(first.saliency, second.saliency)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.spans_cxw, second.spans_cxw)
    assert torch.equal(first.last.logits, second.last.logits)


def assert_learns_and_is_saved(
    name: str,
    model: MomentModel,
    spared: tuple[str, ...] = (),
    data: tuple[Batch, Targets] | None = None,
) -> None:
    """A gradient for all parameters but those whose names begin with `spared`; equal bits after."""
    batch, targets = data or (make_batch(), make_targets(make_batch()))
    total = total_loss(model.train(), batch, targets)
    total.backward()
    assert math.isfinite(float(total.detach()))
    for key, parameter in model.named_parameters():
        if key.startswith(spared):
            assert parameter.grad is None, key
        else:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build_model(name, VIDEO_DIM, TEXT_DIM, model.settings.model_dump())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_bit_equal(evaluate(model, batch), evaluate(other, batch))


def train_until(
    model: MomentModel, step: Callable[[int], torch.Tensor], done: Callable[[], bool], steps: int
) -> bool:
    """Train on `step(number)`, a loss; whether `done` came true, asked after every tenth step."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for number in range(1, steps + 1):
        optimiser.zero_grad()
        step(number - 1).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if number % 10 == 0 and done():
            return True
    return False
