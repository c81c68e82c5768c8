"""What the speed benchmarks share: a synthetic feature store, CPU clocks, counts of operations.

The features are random but lie in a real `FeatureStore` and come through the real loader, so that
reading them is part of what is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mrmodel.data.loader import BatchBuilder, LoaderSettings, MomentDataset, RowLimits
from mrmodel.data.targets import TargetSettings
from mrmodel.features.index import IndexEntry
from mrmodel.features.keys import text_key
from mrmodel.features.manifest import StreamInfo
from mrmodel.features.prepare import TEF_DIM
from mrmodel.features.store import FeatureStore
from mrmodel.features.writer import FeatureWriter
from mrmodel.models import MomentModel, build_model
from mrmodel.types import Annotation

CLIP_LEN_S = 2.0


@dataclass(frozen=True)
class Sizes:
    """Size of the synthetic corpus; the defaults are those of QVHighlights with SlowFast + CLIP.

    Attributes:
        shortest: clips of the shortest video; None = all have `clips`. The first one always has.
    """

    clips: int = 75
    tokens: int = 32
    video_dims: tuple[int, ...] = (2304, 512)
    text_dim: int = 512
    samples: int = 256
    shortest: int | None = None

    @property
    def video_dim(self) -> int:
        """Channels of a prepared clip row."""
        return sum(self.video_dims) + TEF_DIM


def build_data(
    folder: Path, sizes: Sizes, batch: int, device: torch.device | str = "cpu"
) -> MomentDataset:
    """A data set of `sizes.samples` queries, one video each; its batches lie on `device`."""
    rng = np.random.default_rng(0)
    lengths = _lengths(sizes)
    annotations = [_annotation(i, length, rng) for i, length in enumerate(lengths)]
    videos = {row.vid: length for row, length in zip(annotations, lengths, strict=True)}
    texts = dict.fromkeys(sorted(text_key(row.query) for row in annotations), sizes.tokens)
    video = [
        _store(folder / f"video{i}", videos, dim, rng) for i, dim in enumerate(sizes.video_dims)
    ]
    text = [_store(folder / "text", texts, sizes.text_dim, rng)]
    builder = BatchBuilder(video, text, RowLimits(sizes.clips, sizes.tokens), device)
    settings = LoaderSettings(batch, seed=0, targets=TargetSettings(max_windows=5))
    return MomentDataset(annotations, builder, settings)


def _lengths(sizes: Sizes) -> list[int]:
    """Clips of each video."""
    if sizes.shortest is None:
        return [sizes.clips] * sizes.samples
    drawn = np.random.default_rng(1).integers(sizes.shortest, sizes.clips, sizes.samples - 1)
    return [sizes.clips, *drawn.tolist()]


def _annotation(number: int, clips_of_video: int, rng: np.random.Generator) -> Annotation:
    first = int(rng.integers(0, clips_of_video - 10))
    clips = tuple(range(first, first + 10))
    return Annotation(
        qid=number,
        query=f"synthetic query {number:05d}",
        vid=f"video-{number:05d}",
        duration=clips_of_video * CLIP_LEN_S,
        relevant_windows=((first * CLIP_LEN_S, (first + 10) * CLIP_LEN_S),),
        relevant_clip_ids=clips,
        saliency_scores=tuple(tuple(rng.integers(0, 5, 3).tolist()) for _ in clips),
    )


def _store(
    folder: Path, keys: Mapping[str, int], dim: int, rng: np.random.Generator
) -> FeatureStore:
    """A store with so many rows of each key."""
    is_video = folder.name.startswith("video")
    info = StreamInfo(
        stream=folder.name,
        dim=dim,
        modality="video" if is_video else "text",
        keyed_by="vid" if is_video else "text",
        clip_len_s=CLIP_LEN_S if is_video else None,
        fingerprint={"encoder": "synthetic"},
    )
    with FeatureWriter(folder, info) as writer:
        for key, rows in keys.items():
            values = rng.standard_normal((rows, dim), dtype=np.float32)
            writer.add(IndexEntry(key=key, n_rows=rows), values.astype(np.float16))
    return FeatureStore(folder)


@dataclass
class Clock:
    """CPU and wall seconds of named parts, one entry a repeat."""

    cpu: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block as part `name`."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu.setdefault(name, []).append(time.process_time() - cpu)
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)

    def median(self, name: str) -> float:
        """Median CPU seconds of a part."""
        return float(np.median(self.cpu[name]))

    def totals(self, names: Sequence[str]) -> tuple[float, float]:
        """Median CPU and wall seconds of all `names` together."""
        cpu = np.sum([self.cpu[name] for name in names], axis=0)
        wall = np.sum([self.wall[name] for name in names], axis=0)
        return float(np.median(cpu)), float(np.median(wall))


class MatmulCount(TorchDispatchMode):
    """Counts floating-point operations of matrix products and convolutions as they are executed."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and count it when it is a matrix product or a convolution."""
        name = func.overloadpacket.__name__
        if name == "linear":
            self.flops += _product(args[0], args[1].t())
        elif name in ("mm", "bmm"):
            self.flops += _product(args[0], args[1])
        elif name in ("addmm", "addmm_", "baddbmm", "baddbmm_"):
            self.flops += _product(args[1], args[2])
        elif "scaled_dot_product" in name:
            query, key, value = args[:3]
            channels = query.shape[-1] + value.shape[-1]
            self.flops += 2 * query[..., 0].numel() * key.shape[-2] * channels
        result = func(*args, **(kwargs or {}))
        if name.startswith("conv"):
            self.flops += 2 * result.numel() * args[1][0].numel()
        return result


def _product(left: torch.Tensor, right: torch.Tensor) -> int:
    return 2 * left.numel() * right.shape[-1]


def count_flops(function: Callable[[], object]) -> int:
    """Operations that one call executes in matrix products and convolutions."""
    with MatmulCount() as counted:
        function()
    return counted.flops


class MatmulRate:
    """The machine's matrix-product rate, measured with the products of a feed-forward block."""

    def __init__(self, dtype: torch.dtype, rows: int = 4864, hidden: int = 256) -> None:
        self._left = torch.randn(rows, hidden, dtype=dtype)
        self._right = torch.randn(hidden, 4 * hidden, dtype=dtype)
        self._out = torch.empty(rows, 4 * hidden, dtype=dtype)

    def run(self) -> int:
        """Multiply; the number of operations."""
        for _ in range(8):
            torch.mm(self._left, self._right, out=self._out)
        return 8 * _product(self._left, self._right)


def parser(description: str) -> argparse.ArgumentParser:
    """The options that both speed benchmarks have."""
    options = argparse.ArgumentParser(description=description)
    sizes = Sizes()
    options.add_argument("--model", default="qd_detr")
    options.add_argument("--settings", type=json.loads, default={}, help="JSON of model settings")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--clips", type=int, default=sizes.clips)
    options.add_argument("--tokens", type=int, default=sizes.tokens)
    options.add_argument("--video-dims", type=int, nargs="+", default=list(sizes.video_dims))
    options.add_argument("--text-dim", type=int, default=sizes.text_dim)
    options.add_argument("--repeats", type=int, default=10)
    options.add_argument("--json", action="store_true", help="one JSON line")
    return options


def sizes_of(options: argparse.Namespace) -> Sizes:
    """The corpus that the options ask for: eight batches."""
    return Sizes(
        options.clips,
        options.tokens,
        tuple(options.video_dims),
        options.text_dim,
        8 * options.batch,
    )


def model_of(options: argparse.Namespace, sizes: Sizes) -> MomentModel:
    """The model that the options ask for."""
    torch.manual_seed(0)
    return build_model(options.model, sizes.video_dim, sizes.text_dim, options.settings)


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(figures: dict[str, Any], as_json: bool) -> None:
    """Print the figures as one JSON line, or as a list."""
    rounded = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    if as_json:
        print(json.dumps(rounded, allow_nan=False))
    else:
        print("\n".join(f"{name:22} {value}" for name, value in rounded.items()))
