"""What the GPU benchmarks run on: data sets, models and encoders of a size, and a clock."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import Sizes, build_data
from mrmodel import presets
from mrmodel.components import MODELS
from mrmodel.config.schema import Config, parse_config
from mrmodel.data.loader import MomentDataset
from mrmodel.encoders.clip import ClipVideoEncoder
from mrmodel.encoders.internvideo2 import (
    InternVideo2Config,
    InternVideo2VideoEncoder,
    ProjectedVision,
)
from mrmodel.encoders.networks.clip import ClipConfig, ClipVision
from mrmodel.encoders.networks.internvideo2 import VisionSizes
from mrmodel.encoders.networks.slowfast import SlowFast, SlowFastConfig, SlowFastStage
from mrmodel.encoders.slowfast import SlowFastVideoEncoder
from mrmodel.encoders.torch_base import UserWeightsVideoEncoder
from mrmodel.encoders.user_weights import SetConfig, TransformerSizes
from mrmodel.files import parse_yaml
from mrmodel.models import MomentModel, build_model

Figures = dict[str, Any]
Item = tuple[Figures, Callable[[], Figures]]

PRECISIONS = ("fp32", "bf16")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
SMALL_MODEL = {"hidden": 32, "heads": 4, "ffn": 48, "queries": 5}


@dataclass(frozen=True)
class EncoderCase:
    """An encoder with user weights, its network, and its sizes: the published ones, and tiny ones.

    `precision` is the one that its users choose on a GPU.
    """

    encoder: type[UserWeightsVideoEncoder]
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
    return parse_config(parse_yaml(presets.render(f"qvhighlights_{model}")))


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

    def encoder(self, case: EncoderCase, precision: str) -> UserWeightsVideoEncoder:
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

    def frames(self, encoder: UserWeightsVideoEncoder, clips: int) -> np.ndarray:
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
        if self.device.type == "cuda":
            gc.collect()
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


def say(figures: Figures, as_json: bool) -> None:
    """Print one line at once."""
    rounded = _rounded(figures)
    line = json.dumps(rounded, allow_nan=False)
    if not as_json:
        line = "  ".join(f"{name} {value}" for name, value in rounded.items())
    print(line, flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
