"""What a GPU makes of training, inference and the brought encoders: speed, and equal bytes.

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
import gc
import json
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from benchmarks.common import Sizes, build_data, count_flops
from mrmodel import presets
from mrmodel.components import MODELS
from mrmodel.config import Config, parse_config
from mrmodel.data.loader import MomentDataset
from mrmodel.encoders.brought import BroughtVideoEncoder
from mrmodel.encoders.clip import ClipVideoEncoder
from mrmodel.encoders.clip_tower import ClipConfig, ClipVision
from mrmodel.encoders.internvideo2 import (
    InternVideo2Config,
    InternVideo2VideoEncoder,
    ProjectedVision,
)
from mrmodel.encoders.internvideo2_vision import VisionSizes
from mrmodel.encoders.slowfast import SlowFastVideoEncoder
from mrmodel.encoders.slowfast_tower import SlowFast, SlowFastConfig, SlowFastStage
from mrmodel.encoders.weight_sets import SetConfig, TransformerSizes
from mrmodel.models import MomentModel, build_model
from mrmodel.predict.inference import predict_set, seconds_of_answers
from mrmodel.predict.postprocess import PostprocessSettings
from mrmodel.progress import NullReporter
from mrmodel.train.loop import Plan, fit
from mrmodel.train.precision import autocast
from mrmodel.types import Batch, ModelOutput, Targets

Figures = dict[str, Any]
Item = tuple[Figures, Callable[[], Figures]]

PRECISIONS = ("fp32", "bf16")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
WARM_STEPS, FEWEST_STEPS, MOST_STEPS = 4, 5, 30
EQUAL_STEPS = 20  # of each of two trainings that are compared
SMALL_MODEL = {"hidden": 32, "heads": 4, "ffn": 48, "queries": 5}


@dataclass(frozen=True)
class EncoderCase:
    """A brought encoder, its network, and its sizes: the published ones, and tiny ones.

    `precision` is the one that its users choose on a GPU.
    """

    encoder: type[BroughtVideoEncoder]
    network: Callable[[Any], nn.Module]
    full: SetConfig
    small: SetConfig
    precision: str = "bf16"


ENCODERS = (
    EncoderCase(
        InternVideo2VideoEncoder,
        ProjectedVision,
        InternVideo2Config(),
        InternVideo2Config(
            vision=VisionSizes(width=64, layers=2, mlp=96, pooled=32, grid=4), image_size=56
        ),
    ),
    EncoderCase(
        ClipVideoEncoder,
        ClipVision,
        ClipConfig(),
        ClipConfig(
            vision=TransformerSizes(width=64, layers=2, heads=1, mlp=96), image_size=32, patch=8
        ),
    ),
    EncoderCase(
        SlowFastVideoEncoder,
        SlowFast,
        SlowFastConfig(),
        SlowFastConfig(
            stem=16,
            stages=(
                SlowFastStage(blocks=1, inner=8, out=16),
                SlowFastStage(blocks=1, inner=8, out=24),
                SlowFastStage(blocks=1, inner=8, out=32),
                SlowFastStage(blocks=1, inner=16, out=2048),
            ),
            image_size=32,
        ),
        "fp32",
    ),
)


@cache
def config_of(model: str) -> Config:
    """The settings of a model for QVHighlights."""
    return parse_config(yaml.safe_load(presets.render(f"qvhighlights_{model}")))


@dataclass
class Bench:
    """Where and how large everything runs.

    Attributes:
        seconds: about how long a part may take.
        names: of the models.
    """

    device: torch.device
    small: bool
    seconds: float
    folder: Path
    names: Sequence[str]
    _stores: dict[str, MomentDataset] = field(default_factory=dict)

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes of training and inference."""
        return (4,) if self.small else (32, 128)

    def data(self, model: str, batch: int, ragged: bool = False) -> MomentDataset:
        """Queries with features that the model can read; `ragged`: about videos of any length."""
        name = f"{'aligned' if model == 'sg_detr' else 'joined'}{'_ragged' * ragged}"
        if name not in self._stores:
            sizes = self._sizes(model == "sg_detr")
            if ragged:
                sizes = replace(sizes, shortest=sizes.clips // 5 + 10, samples=sizes.samples // 4)
            self._stores[name] = build_data(self.folder / name, sizes, batch, self.device)
        found = self._stores[name]
        settings = replace(found.settings, batch_size=batch)
        return MomentDataset(found.annotations, found.builder, settings)

    def model(self, name: str) -> MomentModel:
        """The model at its published size, with first weights that are the same every time."""
        settings = dict(config_of(name).models[name])
        if self.small:
            known = MODELS.get(name).Settings.model_fields
            settings |= {key: value for key, value in SMALL_MODEL.items() if key in known}
        sizes = self._sizes(name == "sg_detr")
        torch.manual_seed(0)
        model = build_model(name, sizes.video_dim, sizes.text_dim, settings)
        return model.to(self.device).eval()

    def encoder(self, case: EncoderCase, precision: str) -> BroughtVideoEncoder:
        """An encoder whose weights are random, and never were in a file."""
        config = case.small if self.small else case.full
        config = config.model_copy(update={"compute_dtype": DTYPES[precision]})
        torch.manual_seed(0)
        with self.device:
            network = case.network(config)
        for name, value in network.state_dict().items():
            if not name.endswith(("weight", "gamma", "running_var")):
                value.normal_(std=0.02)  # positions, tokens and biases, which begin as zeros
        encoder = case.encoder()
        encoder.device = self.device
        # What the encoder otherwise reads from its weight set when it is first asked.
        vars(encoder)["config"] = config
        vars(encoder)["_model"] = network.to(config.dtype).eval().requires_grad_(False)
        return encoder

    def frames(self, encoder: BroughtVideoEncoder, clips: int) -> np.ndarray:
        """Random clips as the encoder asks for them."""
        sampling = encoder.sampling
        width, height = sampling.size or (0, 0)
        shape = (clips, sampling.frames_per_clip, height, width, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def begin(self) -> None:
        """Give back what an item left, and count memory anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self) -> Figures:
        """Most memory that tensors took on the device since the item began."""
        if self.device.type != "cuda":
            return {}
        return {"peak_gb": torch.cuda.max_memory_allocated(self.device) / 1e9}

    def seconds_of(self, run: Callable[[], object], budget: float) -> float:
        """Median seconds of a call after one that is not counted; one at least, within `budget`."""
        taken: list[float] = []
        started = time.perf_counter()
        while len(taken) < 2 or (time.perf_counter() - started < budget and len(taken) < 50):
            self.wait()
            before = time.perf_counter()
            run()
            self.wait()
            taken.append(time.perf_counter() - before)
        return float(np.median(taken[1:]))

    def _sizes(self, aligned: bool) -> Sizes:
        if self.small:
            return Sizes(20, 5, (12,) if aligned else (16, 8), 12, 16)
        return Sizes(video_dims=(512,) if aligned else (2304, 512), samples=512)


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

    def log(self, figures: Any, step: int) -> None:
        """Ignore."""


def train(
    bench: Bench, name: str, precision: str, data: MomentDataset | WatchedData, steps: int
) -> tuple[MomentModel, list[float]]:
    """The training loop with the settings of QVHighlights: the model, and the loss of each step."""
    section = config_of(name).train
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
    fit(model, data, Plan(settings, run, 0, bench.folder / "none.pt"), None, (losses, losses))
    return model, losses.values


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
    settings = PostprocessSettings(round_to_s=2.0, nms_iou=0.7)

    def measure(name: str, batch: int, precision: str) -> Figures:
        data = bench.data(name, batch)
        model = bench.model(name)
        with autocast(bench.device, precision):
            whole = bench.seconds_of(lambda: predict_set(model, data, batch, settings), budget / 3)
            answers = [seconds_of_answers(model, data, batch, settings) for _ in range(2)][-1]
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


def _flops_of_a_clip(bench: Bench, encoder: BroughtVideoEncoder) -> int:
    clip = torch.from_numpy(bench.frames(encoder, 1)).to(bench.device)
    with torch.inference_mode():
        return count_flops(lambda: encoder._run(clip))


def invariance_items(bench: Bench) -> Iterator[Item]:
    """Whether rows and answers depend on place and neighbours; what takes longest comes last."""

    def of_encoders(precision: str) -> Iterator[Item]:
        for case in ENCODERS:
            about = {"encoder": case.encoder.name, "precision": precision}
            yield about, partial(encoder_invariance, bench, case, precision)

    yield from of_encoders("bf16")
    for name in bench.names:
        for precision in PRECISIONS:
            about = {"model": name, "precision": precision}
            yield about, partial(model_invariance, bench, name, precision)
    yield from of_encoders("fp32")


def encoder_invariance(bench: Bench, case: EncoderCase, precision: str) -> Figures:
    """Differences of rows by order, company and batch size."""
    encoder = bench.encoder(case, precision)
    batch = 3 if bench.small else case.encoder.gpu_batch
    vars(encoder)["gpu_batch"] = batch
    clips = 64 if precision == "bf16" else max(16, 2 * batch)
    frames = bench.frames(encoder, 8 if bench.small else clips)
    rows = encoder.encode_clips(frames)
    differences: dict[str, float] = {"again": _apart(encoder.encode_clips(frames), rows)}
    for number in (1, 2):
        order = np.random.default_rng(number).permutation(len(frames))
        differences[f"order_{number}"] = _apart(encoder.encode_clips(frames[order]), rows[order])
    for clip in (0, len(frames) // 3, len(frames) - 1):
        alone = encoder.encode_clips(frames[clip : clip + 1])
        differences[f"alone_{clip}"] = _apart(alone, rows[clip : clip + 1])
    vars(encoder)["gpu_batch"] = 2 * batch
    other = {"twice_the_batch": _apart(encoder.encode_clips(frames), rows)}
    return {
        "equal": not any(differences.values()),
        **differences,
        **other,
        "mean_size": float(np.abs(rows).mean()),
        "finite": bool(np.isfinite(rows).all()),
    }


def model_invariance(bench: Bench, name: str, precision: str) -> Figures:
    """Differences of a query's answers by its place, its neighbours, and alone in a batch."""
    size = 4 if bench.small else 32
    data = bench.data(name, size, ragged=True)
    model = bench.model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)  # some begin as zeros, and hide inputs

    def answers(rows: list[int]) -> ModelOutput:
        batch = data.batch(rows, 0)[0]
        with torch.inference_mode(), autocast(bench.device, precision):
            output: ModelOutput = model(batch)
        return output

    # The first video is the longest, so that all batches with it are padded alike.
    rows = list(range(size))
    first = answers(rows)
    order = np.random.default_rng(1).permutation(size).tolist()
    half = size // 2
    others = list(range(len(data) - half, len(data)))
    found = {
        "again": (answers(rows), rows),
        "place": (answers(order), order),
        "neighbours": (answers(rows[:half] + others), rows[:half]),
        "alone": (answers([1]), [1]),
    }
    clips = [int(data.n_clips[row]) for row in rows]
    differences = {case: _answers_apart(o, first, r, clips) for case, (o, r) in found.items()}
    kept = ("again", "place", "neighbours")
    return {"equal": not any(any(differences[case].values()) for case in kept), **differences}


def _answers_apart(
    output: ModelOutput, first: ModelOutput, rows: list[int], clips: list[int]
) -> dict[str, float]:
    """Largest differences of the samples `rows` of `first`, which are the first of `output`."""
    fields = {
        "spans": (output.spans_cxw, first.spans_cxw),
        "scores": (output.scores, first.scores),
        "last_spans": (output.last.spans_cxw, first.last.spans_cxw),
    }
    apart = {
        name: max(_apart(_array(ours[i]), _array(theirs[row])) for i, row in enumerate(rows))
        for name, (ours, theirs) in fields.items()
    }
    apart["saliency"] = max(
        _apart(_array(output.saliency[i, : clips[row]]), _array(first.saliency[row, : clips[row]]))
        for i, row in enumerate(rows)
    )
    return apart


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def _apart(first: np.ndarray, second: np.ndarray) -> float:
    """Largest absolute difference; infinite where the shapes or the broken values differ."""
    if first.shape != second.shape or (np.isnan(first) != np.isnan(second)).any():
        return float("inf")
    return float(np.nan_to_num(np.abs(first.astype(np.float64) - second)).max(initial=0.0))


def determinism_items(bench: Bench) -> Iterator[Item]:
    """Whether a training can be repeated."""
    for name in bench.names:
        for precision in PRECISIONS:
            about = {"model": name, "precision": precision}
            yield about, partial(repeat_training, bench, name, precision)


def repeat_training(bench: Bench, name: str, precision: str) -> Figures:
    """Two trainings from one seed; where they differ, two more with PyTorch's strict kernels."""
    steps = 3 if bench.small else EQUAL_STEPS
    data = bench.data(name, bench.batches[0])

    def compare() -> Figures:
        (model, losses), (other, others) = (
            train(bench, name, precision, data, steps) for _ in range(2)
        )
        state = other.state_dict()
        apart = [_apart(_array(v), _array(state[key])) for key, v in model.state_dict().items()]
        pairs = enumerate(zip(losses, others, strict=True))
        return {
            "equal": not any(apart),
            "tensors_apart": sum(map(bool, apart)),
            "tensors": len(apart),
            "largest": max(apart),
            "first_other_loss": next((step for step, (a, b) in pairs if a != b), None),
            "losses": [losses[0], losses[-1]],
            "finite": bool(np.isfinite(losses).all()),
        }

    figures = compare()
    if not figures["equal"]:
        with ExitStack() as stack, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.use_deterministic_algorithms(True, warn_only=True)
            stack.callback(torch.use_deterministic_algorithms, False)
            figures["strict"] = compare()
        messages = Counter(str(warning.message)[:90] for warning in told)
        figures["strict_warnings"] = dict(messages.most_common(4))
    return figures


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


def say(figures: Figures, as_json: bool) -> None:
    """Print one line at once."""
    rounded = _rounded(figures)
    line = json.dumps(rounded)
    if not as_json:
        line = "  ".join(f"{name} {value}" for name, value in rounded.items())
    print(line, flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


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
