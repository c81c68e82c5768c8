"""Training, inference and encoders with user weights on a GPU: speed, and equal bytes.

Run ``python -m benchmarks.gpu [--part NAME ...] [--models NAME ...] [--seconds N] [--json]``; with
``--device cpu --small`` it is a dry run with tiny networks. One line is printed as soon as it is
known, so that a run that is cut short still tells what it found; an item that fails prints its
error, and the next one begins. Times are wall clock, the device waited for, medians after a
warm-up.

* ``invariance``: whether the rows of a clip, or the answers to a query, are the same bits whatever
  its place and its neighbours; largest absolute differences.
* ``train``: the training loop with the settings of QVHighlights; `data_share` is the part of a step
  in which the device waits for the next batch, `syncs` how often a step waits for the device.
* ``encoders``: clips a second from frames in memory to rows in memory (`clips_per_s`) and of the
  network alone, at the encoder's `gpu_batch`, twice and four times that; random weights.
* ``inference``: queries a second, with loading, and of forward pass and windows alone.
* ``determinism``: whether two trainings from one seed end in the same bytes.

Weights and features are random; SG-DETR reads 512 channels, the others SlowFast + CLIP.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import count_flops
from benchmarks.gpu_bench import (
    DTYPES,
    ENCODERS,
    PRECISIONS,
    Bench,
    EncoderCase,
    Figures,
    Item,
    say,
)
from benchmarks.gpu_equality import determinism_items, invariance_items
from benchmarks.gpu_training import FEWEST_STEPS, WARM_STEPS, EnoughSteps, WatchedData, train
from mrmodel.components import MODELS
from mrmodel.config.postprocess import VALIDATION
from mrmodel.encoders.torch_base import UserWeightsVideoEncoder
from mrmodel.predict.inference import predict_set, seconds_of_predictions
from mrmodel.predict.postprocess import Postprocess
from mrmodel.train.optim import autocast

MOST_STEPS = 30


def train_items(bench: Bench) -> Iterator[Item]:
    """Speed of training."""
    budget = bench.seconds / (len(bench.names) * len(bench.batches) * len(PRECISIONS))

    def measure(name: str, batch: int, precision: str) -> Figures:
        watched = WatchedData(bench.data(name, batch), 0.7 * budget)
        steps = WARM_STEPS + FEWEST_STEPS + 1 if bench.small else WARM_STEPS + MOST_STEPS
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                train(bench, name, precision, watched, steps)
            except EnoughSteps:
                pass
            finally:
                watched.tell_of_waits(False)
        return watched.figures(batch) | _waits(told) | bench.memory()

    for name in bench.names:
        for batch in bench.batches:
            for precision in PRECISIONS:
                about = {"model": name, "batch": batch, "precision": precision}
                yield about, partial(measure, **_named(about))


def _named(about: Figures) -> Figures:
    """The arguments of a measurement: its description, the model by its `name`."""
    return {"name" if key == "model" else key: value for key, value in about.items()}


def _waits(told: list[warnings.WarningMessage]) -> Figures:
    """How often one step waited for the device, and where most."""
    waits = [warning for warning in told if "called a synchronizing" in str(warning.message)]
    places = Counter(f"{Path(wait.filename).name}:{wait.lineno}" for wait in waits)
    return {"syncs": len(waits), "syncs_at": dict(places.most_common(8))}


def inference_items(bench: Bench) -> Iterator[Item]:
    """Speed of answers."""
    budget = bench.seconds / (len(bench.names) * len(bench.batches) * len(PRECISIONS))
    settings = Postprocess.of(VALIDATION.model_copy(update={"nms_iou": 0.7}), 2.0)

    def measure(name: str, batch: int, precision: str) -> Figures:
        data = bench.data(name, batch)
        model = bench.model(name)
        with autocast(bench.device, precision):
            whole = bench.seconds_of(lambda: predict_set(model, data, batch, settings), budget / 3)
            answers = [seconds_of_predictions(model, data, batch, settings) for _ in range(2)][-1]
        return {
            "queries_per_s": len(data) / whole,
            "answers_per_s": len(data) / answers,
            "load_share": 1.0 - answers / whole,
            **bench.memory(),
        }

    for name in bench.names:
        for batch in bench.batches:
            for precision in PRECISIONS:
                about = {"model": name, "batch": batch, "precision": precision}
                yield about, partial(measure, **_named(about))


def encoder_items(bench: Bench) -> Iterator[Item]:
    """Speed of the encoders at several batch sizes."""
    factors = dict.fromkeys(("bf16", "fp32"), (1,))
    if not bench.small:
        factors = {"bf16": (1, 2, 4), "fp32": (1, 2)}
    budget = bench.seconds / (len(ENCODERS) * sum(map(len, factors.values())))

    def measure(case: EncoderCase, precision: str, factor: int) -> Figures:
        encoder = bench.encoder(case, precision)
        flops = _flops_of_a_clip(bench, encoder)
        batch = (2 if bench.small else case.encoder.gpu_batch) * factor
        vars(encoder)["gpu_batch"] = batch
        frames = bench.frames(encoder, batch)
        on_device = torch.from_numpy(frames).to(bench.device)

        @torch.inference_mode()
        def network() -> Tensor:
            return encoder._run(on_device)

        whole = bench.seconds_of(lambda: encoder.encode_clips(frames), budget / 3)
        alone = bench.seconds_of(network, budget / 3)
        return {
            "batch": batch,
            "clips_per_s": batch / whole,
            "network_clips_per_s": batch / alone,
            "gflop_per_clip": flops / 1e9,
            "tflops": batch * flops / whole / 1e12,
            "network_tflops": batch * flops / alone / 1e12,
            **bench.memory(),
        }

    for precision in factors:
        for case in ENCODERS:
            for factor in factors[precision]:
                about = {"encoder": case.encoder.name, "precision": precision, "factor": factor}
                yield about, partial(measure, case, precision, factor)


def _flops_of_a_clip(bench: Bench, encoder: UserWeightsVideoEncoder) -> int:
    clip = torch.from_numpy(bench.frames(encoder, 1)).to(bench.device)
    with torch.inference_mode():
        return count_flops(lambda: encoder._run(clip))


PARTS: dict[str, Callable[[Bench], Iterator[Item]]] = {
    "invariance": invariance_items,
    "train": train_items,
    "encoders": encoder_items,
    "inference": inference_items,
    "determinism": determinism_items,
}


def machine(bench: Bench) -> Figures:
    """What the figures belong to."""
    figures: Figures = {
        "device": str(bench.device),
        "torch": torch.__version__,
        "tf32_products": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "threads": torch.get_num_threads(),
    }
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        figures |= {"device": properties.name, "cuda": torch.version.cuda}
        figures |= {"cudnn": torch.backends.cudnn.version()}
    size = 256 if bench.small else 8192
    for precision, name in DTYPES.items():
        left = torch.randn(size, size, device=bench.device, dtype=getattr(torch, name))
        seconds = bench.seconds_of(partial(torch.mm, left, left), 0.2)
        figures[f"matmul_tflops_{precision}"] = 2 * size**3 / seconds / 1e12
    return figures


def run_part(bench: Bench, part: str, as_json: bool) -> None:
    """All items of a part, one line each."""
    for about, measure in PARTS[part](bench):
        started = time.perf_counter()
        try:
            bench.begin()
            figures = measure()
        except Exception:
            figures = {"error": traceback.format_exc()[-1200:]}
        taken = time.perf_counter() - started
        say({"part": part, **about, **figures, "took_s": taken}, as_json)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    options.add_argument("--models", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    options.add_argument("--seconds", type=float, default=60.0, help="about how long a part runs")
    options.add_argument("--device", default="cuda")
    options.add_argument("--small", action="store_true", help="tiny networks, for a dry run")
    options.add_argument("--json", action="store_true", help="JSON lines")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        device = torch.device(chosen.device)
        bench = Bench(device, chosen.small, chosen.seconds, Path(folder), chosen.models)
        say({"part": "machine", **machine(bench)}, chosen.json)
        for part in chosen.part:
            run_part(bench, part, chosen.json)


if __name__ == "__main__":
    main()
