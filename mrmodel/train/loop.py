"""The training loop.

All randomness of step k is seeded from (run seed, k), so a run that is interrupted and resumed from
its last checkpoint produces byte-identical outputs.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mrmodel.config.schema import RunSettings, TrainSettings
from mrmodel.data.loader import MomentDataset
from mrmodel.devices import pick_device
from mrmodel.errors import TrainingError
from mrmodel.files import derive_seed
from mrmodel.models.base import MomentModel
from mrmodel.progress import Reporter
from mrmodel.train.checkpoint import load_resume_state, save_resume_state
from mrmodel.train.optim import (
    autocast,
    build_optimizer,
    learning_rate,
    set_learning_rate,
    set_threads,
)
from mrmodel.types import Batch

log = logging.getLogger(__name__)

Validate = Callable[[MomentModel], Mapping[str, float]]


class Recorder(Protocol):
    """Destination of metrics during training."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log `metrics` at `step`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train: the settings, the seed, and the resume file."""

    settings: TrainSettings
    run: RunSettings
    seed: int
    resume_file: Path


@dataclass(slots=True)
class Progress:
    """State of a run. `history` has one row per epoch; `best_*` belong to the best validation.

    `seconds` is the time of the steps alone, from the forward pass to the update, without loading,
    validation and checkpoints. Steps repeated after an interruption count once.
    """

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_value: float = -math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def fit(
    model: MomentModel,
    data: MomentDataset,
    plan: Plan,
    validate: Validate | None,
    watchers: tuple[Recorder, Reporter],
) -> Progress:
    """Train `model` in place; it ends with the weights selected by the run's `select`.

    With the run's `swa` the weights at the end of each epoch from its first one on are averaged;
    from then on the mean is validated and is the result, and training goes on beside it.

    Args:
        model: a model with its initial weights.
        data: the training set, whose batches are on the device of the model.
        plan: settings, seed, resume file.
        validate: metrics of the model on validation data; the first one selects the best weights.
            Without it the last weights are the result, regardless of `select`.
        watchers: receive metrics and progress.

    Raises:
        TrainingError: a loss is not finite; names the step, the losses and the batch's ids.
    """
    recorder, reporter = watchers
    settings, run = plan.settings, plan.run
    set_threads(settings.threads)
    device = pick_device(settings.device)
    model.to(device)
    criterion = model.criterion()
    parameters = list(model.parameters())
    optimizer = build_optimizer(model, run.lr, settings.weight_decay, settings.weight_decay_on)
    progress, average = resume(plan.resume_file, model, optimizer)
    for row in progress.history:  # Of the interrupted run, which was another MLflow run.
        recorder.log(row, int(row["step"]))

    batches = data.epoch_batches(0)
    steps_per_epoch = len(batches)
    total_steps = run.steps or (run.epochs or 0) * steps_per_epoch
    batches_epoch = 0
    reporter.start("train", total_steps, progress.step)

    while progress.step < total_steps:
        step = progress.step
        epoch, position = divmod(step, steps_per_epoch)
        if epoch != batches_epoch:
            batches, batches_epoch = data.epoch_batches(epoch), epoch
        torch.manual_seed(derive_seed(plan.seed, "step", step))
        batch, targets = data.batch(batches[position], epoch)

        started = time.perf_counter()
        model.train()
        with autocast(device, settings.precision):
            output = model(batch, targets, step / total_steps)
        losses = criterion(output, targets, batch)
        total = criterion.total(losses, epoch)
        scalars = read_losses(total, losses)
        stop_if_not_finite(scalars, step, batch)

        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm, foreach=True)
        rate = learning_rate(run, step, total_steps, steps_per_epoch)
        set_learning_rate(optimizer, rate)
        optimizer.step()

        progress.step = step + 1
        progress.seconds += time.perf_counter() - started
        for name, value in {**scalars, "grad_norm": float(norm)}.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        reporter.advance(loss=scalars["loss"], lr=rate)

        if progress.step == total_steps or progress.step % steps_per_epoch == 0:
            row = close_epoch(progress, position + 1, epoch, rate)
            if run.swa is not None and epoch + 1 >= run.swa.from_epoch:
                average = AveragedModel(model) if average is None else average
                average.update_parameters(model)
            is_last = progress.step == total_steps
            is_due = is_last or (epoch + 1) % settings.validate_every_epochs == 0
            if validate is not None and is_due:
                row.update(check(result_of(model, average), validate, progress))
            recorder.log(row, progress.step)
            progress.history.append(row)
        if progress.step % settings.checkpoint_every_steps == 0:
            save_resume_state(plan.resume_file, state_of(model, optimizer, progress, average))

    reporter.finish()
    if run.select == "best" and progress.best_weights:
        model.load_state_dict(progress.best_weights)
        log.info("best validation %.4f at step %d", progress.best_value, progress.best_step)
    elif average is not None:
        model.load_state_dict(result_of(model, average).state_dict())
    model.eval()
    return progress


def read_losses(total: Tensor, losses: Mapping[str, Tensor]) -> dict[str, float]:
    """The total (as ``loss``) and every named loss as floats, with a single device transfer."""
    with torch.no_grad():
        values = torch.stack([total, *losses.values()])
    return dict(zip(["loss", *losses], values.tolist(), strict=True))


def stop_if_not_finite(scalars: Mapping[str, float], step: int, batch: Batch) -> None:
    """Raise TrainingError if a loss is NaN or infinite."""
    broken = {name: value for name, value in scalars.items() if not math.isfinite(value)}
    if broken:
        faults = ", ".join(f"{name} = {value}" for name, value in broken.items())
        raise TrainingError(
            f"step {step}: {faults}; the batch holds qids {batch.qids}. "
            "Check these rows with `mrmodel data check` and `mrmodel features verify`, "
            "or lower the learning rate"
        )


def close_epoch(progress: Progress, steps: int, epoch: int, rate: float) -> dict[str, float]:
    """Means over the epoch's steps as a history row; resets the sums."""
    means = {f"train/{name}": value / steps for name, value in progress.sums.items()}
    progress.sums = {}
    return {"step": progress.step, "epoch": epoch + 1, "lr": rate, **means}


def result_of(model: MomentModel, average: AveragedModel | None) -> MomentModel:
    """The model with the averaged weights, once there are any.

    They need no second pass over the data, which is for batch norm: no model here has one.
    """
    return model if average is None else cast("MomentModel", average.module)


def check(model: MomentModel, validate: Validate, progress: Progress) -> dict[str, float]:
    """Validate, and keep the weights if they are the best so far (the earliest wins a tie)."""
    model.eval()
    with torch.inference_mode():
        metrics = dict(validate(model))
    value = next(iter(metrics.values()))
    if value > progress.best_value:
        progress.best_value, progress.best_step = value, progress.step
        progress.best_weights = {
            name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()
        }
    return {f"val/{name}": number for name, number in metrics.items()}


def state_of(
    model: MomentModel,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    average: AveragedModel | None,
) -> dict[str, Any]:
    """The complete resume state; averaged weights and their number are there once there are any."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": {name: getattr(progress, name) for name in Progress.__slots__},
    }
    return state if average is None else {**state, "average": average.state_dict()}


def resume(
    path: Path, model: MomentModel, optimizer: torch.optim.Optimizer
) -> tuple[Progress, AveragedModel | None]:
    """Continue from the state at `path` if there is one, else start at step 0."""
    state = load_resume_state(path)
    if state is None:
        return Progress(), None
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress, average = Progress(**state["progress"]), None
    if "average" in state:
        average = AveragedModel(model)
        average.load_state_dict(state["average"])
    log.info("continuing at step %d from %s", progress.step, path)
    return progress, average
