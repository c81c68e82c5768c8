"""Speed of a training step: batch from the feature store, forward, losses, backward, AdamW.

Run ``python -m benchmarks.train_step [--model NAME] [--threads N] [--dtype fp32|bf16] [--batch N]
[--json]``. Rates are medians over the repeats, in seconds of CPU time. `flop_utilisation` is the
share of the matrix-product rate, measured between the repeats, that the step reaches with the
products that it executes.
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
from mrmodel.train.optim import build_optimizer
from mrmodel.train.precision import autocast
from mrmodel.types import Batch, Targets

PARTS = ("load", "forward_loss", "backward_step")


class Trainer:
    """The steps of the training loop, without its records and checkpoints."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        sizes = sizes_of(options)
        self.data = build_data(folder, sizes, options.batch)
        self.model = model_of(options, sizes).train()
        self.criterion = self.model.criterion()
        self.optimizer = build_optimizer(self.model, 1e-4, 1e-4, "all")
        self.precision = options.dtype
        self.batches = _endless(self.data)

    def load(self) -> tuple[Batch, Targets]:
        """The next batch."""
        rows, epoch = next(self.batches)
        return self.data.batch(rows, epoch)

    def loss(self, batch: Batch, targets: Targets) -> Tensor:
        """Forward pass and losses."""
        with autocast(torch.device("cpu"), self.precision):
            output = self.model(batch, targets)
        return self.criterion.total(self.criterion(output, targets, batch))

    def update(self, loss: Tensor) -> None:
        """Backward pass, clipping, optimiser."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.1, foreach=True)
        self.optimizer.step()

    def step(self) -> None:
        """One whole step."""
        self.update(self.loss(*self.load()))


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
    trainer.step()
    flops = count_flops(trainer.step)
    for _ in range(options.repeats):
        with clock.part("matmul"):
            operations = rate.run()
        with clock.part("load"):
            batch, targets = trainer.load()
        with clock.part("forward_loss"):
            loss = trainer.loss(batch, targets)
        with clock.part("backward_step"):
            trainer.update(loss)
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
