"""The real training loop under a clock: its data are watched, its losses kept."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_bench import Bench, Figures, config_of
from mrmodel.data.loader import MomentDataset
from mrmodel.models import MomentModel
from mrmodel.progress import NullReporter
from mrmodel.train.loop import Plan, fit
from mrmodel.types import Batch, Targets

WARM_STEPS, FEWEST_STEPS = 4, 5


class EnoughSteps(Exception):
    """A training was watched for long enough."""


class WatchedData:
    """The data of a training, with the clock read where the loop asks for a batch.

    The loop reads the losses and the gradient's norm in every step, so that the device has nothing
    to do while it loads, and a step is what lies between two questions.
    """

    def __init__(self, data: MomentDataset, seconds: float) -> None:
        self.data, self.seconds = data, seconds
        self.asked: list[float] = []
        self.loaded: list[float] = []

    def epoch_batches(self, epoch: int) -> list[Any]:
        """As the data set."""
        return self.data.epoch_batches(epoch)

    def batch(self, indices: Any, epoch: int) -> tuple[Batch, Targets]:
        """As the data set; raises `EnoughSteps` when the time is over."""
        step = len(self.asked)
        self.tell_of_waits(step == WARM_STEPS - 1)
        self.asked.append(time.perf_counter())
        over = self.asked[-1] - self.asked[0] > self.seconds
        if over and step >= WARM_STEPS + FEWEST_STEPS:
            raise EnoughSteps
        found = self.data.batch(indices, epoch)
        self.loaded.append(time.perf_counter())
        return found

    def figures(self, batch: int) -> Figures:
        """Speed without the first steps."""
        steps = np.diff(self.asked)[WARM_STEPS:]
        loads = (np.array(self.loaded[: len(self.asked) - 1]) - self.asked[:-1])[WARM_STEPS:]
        return {
            "steps": len(steps),
            "samples_per_s": batch / float(np.median(steps)),
            "step_s": float(np.median(steps)),
            "load_s": float(np.median(loads)),
            "data_share": float(np.median(loads / steps)),
        }

    def tell_of_waits(self, wanted: bool) -> None:
        """In one step of the warm-up every wait for the device is a warning."""
        if torch.cuda.is_initialized():
            torch.cuda.set_sync_debug_mode("warn" if wanted else "default")


class Losses(NullReporter):
    """The loss of every step; as a recorder it keeps nothing."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def advance(self, steps: int = 1, **info: object) -> None:
        """Keep the loss."""
        if "loss" in info:
            self.values.append(float(str(info["loss"])))

    def log(self, metrics: Any, step: int) -> None:
        """Ignore."""


def train(
    bench: Bench, name: str, precision: str, data: MomentDataset | WatchedData, steps: int
) -> tuple[MomentModel, list[float]]:
    """The training loop with the settings of QVHighlights: the model, and the loss of each step."""
    section = config_of(name).train.for_run("scratch")
    settings = section.model_copy(
        update={
            "precision": precision,
            "device": str(bench.device),
            "checkpoint_every_steps": steps + 1,
            "threads": 1 if bench.small else section.threads,
        }
    )
    run = section.scratch.model_copy(update={"epochs": None, "steps": steps})
    model, losses = bench.model(name), Losses()
    (data.data if isinstance(data, WatchedData) else data).host_inputs = model.host_inputs
    fit(model, data, Plan(settings, run, 0, bench.folder / "none.pt"), None, (losses, losses))
    return model, losses.values
