"""Speed of inference: batch from the feature store, forward pass, windows in seconds.

Run ``python -m benchmarks.inference [--model NAME] [--threads N] [--dtype fp32|bf16] [--batch N]
[--json]``. Rates are medians over the repeats, in seconds of CPU time; a sample is one query.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

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
from mrmodel.train.optim import autocast
from mrmodel.types import Batch, ModelOutput

PARTS = ("load", "forward")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of the benchmark; see the module's text."""
    torch.set_num_threads(options.threads)
    sizes = sizes_of(options)
    data = build_data(folder, sizes, options.batch)
    model = model_of(options, sizes).eval()
    batches = data.eval_batches(options.batch)
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    rate, clock, operations = MatmulRate(dtype), Clock(), 0

    def forward(batch: Batch) -> ModelOutput:
        with torch.inference_mode(), autocast(torch.device("cpu"), options.dtype):
            return model(batch)

    batch = data.batch(batches[0], 0)[0]
    forward(batch)
    flops = count_flops(lambda: forward(batch))
    for repeat in range(options.repeats):
        with clock.part("matmul"):
            operations = rate.run()
        with clock.part("load"):
            batch = data.batch(batches[repeat % len(batches)], 0)[0]
        with clock.part("forward"):
            forward(batch)
    cpu, wall = clock.totals(PARTS)
    gflops = operations / clock.median("matmul") / 1e9
    return {
        "benchmark": "inference",
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
        "batch_s": cpu,
    }


def main() -> None:
    """Measure and print."""
    options = parser(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(measure(options, Path(folder)), options.json)


if __name__ == "__main__":
    main()
