"""Speed of a training step: batch from the feature store, forward, losses, backward, AdamW.

Run ``python -m benchmarks.train_step [--model NAME] [--threads N] [--dtype fp32|bf16] [--batch N]
[--json]``. Rates are medians over the repeats, in seconds of CPU time. `flop_utilisation` is the
share of the matrix-product rate, measured between the repeats, that the step reaches with the
products that it executes. `outside_share` is the part of the step that is neither the model's
forward nor the backward pass: loading (with the model's host inputs), losses and optimiser.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import (
    Clock,
    MatmulRate,
    build_data,
    count_flops,
    model_of,
    parser,
    peak_rss_mb,
    report,
    sizes_of,
)
from mrmodel.data.loader import MomentDataset
from mrmodel.train.optim import autocast, build_optimizer
from mrmodel.types import Batch, ModelOutput, Targets

PARTS = ("load", "forward", "loss", "backward", "update")
OUTSIDE = ("load", "loss", "update")


class Trainer:
    """The steps of the training loop, without its records and checkpoints."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        sizes = sizes_of(options)
        self.data = build_data(folder, sizes, options.batch)
        self.model = model_of(options, sizes).train()
        self.data.host_inputs = self.model.host_inputs
        self.criterion = self.model.criterion()
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.model, 1e-4, 1e-4, "all")
        self.precision = options.dtype
        self.batches = _endless(self.data)

    def load(self) -> tuple[Batch, Targets]:
        """The next batch."""
        rows, epoch = next(self.batches)
        return self.data.batch(rows, epoch)

    def forward(self, batch: Batch, targets: Targets) -> ModelOutput:
        """Forward pass."""
        with autocast(torch.device("cpu"), self.precision):
            output: ModelOutput = self.model(batch, targets)
        return output

    def loss(self, output: ModelOutput, batch: Batch, targets: Targets) -> Tensor:
        """All losses, weighted and summed."""
        return self.criterion.total(self.criterion(output, targets, batch))

    def backward(self, loss: Tensor) -> None:
        """Backward pass."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def update(self) -> None:
        """Clipping, optimiser."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 0.1, foreach=True)
        self.optimizer.step()

    def step(self, clock: Clock) -> None:
        """One whole step, its parts timed."""
        with clock.part("load"):
            batch, targets = self.load()
        with clock.part("forward"):
            output = self.forward(batch, targets)
        with clock.part("loss"):
            loss = self.loss(output, batch, targets)
        with clock.part("backward"):
            self.backward(loss)
        with clock.part("update"):
            self.update()


def _endless(data: MomentDataset) -> Iterator[tuple[Any, int]]:
    epoch = 0
    while True:
        for rows in data.epoch_batches(epoch):
            yield rows, epoch
        epoch += 1


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of the benchmark; see the module's text."""
    torch.set_num_threads(options.threads)
    trainer = Trainer(options, folder)
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    rate, clock, operations = MatmulRate(dtype), Clock(), 0
    trainer.step(Clock())
    flops = count_flops(lambda: trainer.step(Clock()))
    for _ in range(options.repeats):
        with clock.part("matmul"):
            operations = rate.run()
        trainer.step(clock)
    cpu, wall = clock.totals(PARTS)
    gflops = operations / clock.median("matmul") / 1e9
    return {
        "benchmark": "train_step",
        "model": options.model,
        "dtype": options.dtype,
        "threads": options.threads,
        "batch": options.batch,
        "samples_per_s": options.batch / cpu,
        "wall_samples_per_s": options.batch / wall,
        "matmul_gflop": flops / 1e9,
        "matmul_gflops": gflops,
        "flop_utilisation": flops / cpu / 1e9 / gflops,
        "peak_rss_mb": peak_rss_mb(),
        "outside_share": clock.totals(OUTSIDE)[0] / cpu,
        **{f"{part}_s": clock.median(part) for part in PARTS},
        "step_s": cpu,
        "step_s_quartiles": _quartiles(clock),
    }


def _quartiles(clock: Clock) -> list[float]:
    total = np.sum([clock.cpu[part] for part in PARTS], axis=0)
    return [round(float(value), 4) for value in np.quantile(total, (0.25, 0.75))]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(measure(options, Path(folder)), options.json)


if __name__ == "__main__":
    main()
