"""Common parts of encoders with user weights: preprocessing, batching, inference.

The rounding of a matrix product depends on its shape. On a CPU clips are encoded one by one; on a
GPU, and for sentences, batches are padded to a fixed size (sentences on a CPU only where that
changes bits). So the result is the same alone and in a batch, to the bit: on a CPU always, on a GPU
where the kernels do not depend on the position in the batch (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from operator import attrgetter
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.devices import pick_device
from mrmodel.encoders.base import (
    Frames,
    Modality,
    RowLayout,
    Rows,
    TokenCounts,
    check_frames,
    count_tokens,
    describe_encoder,
)
from mrmodel.encoders.user_weights import SetConfig, WeightSet
from mrmodel.video.sampling import FrameSampling

DEVICE_VARIABLE = "MRMODEL_ENCODER_DEVICE"
# 8 sentences in a batch take less than half the time of 8 single ones; 32 saves little more.
TEXT_BATCH = 8


def encoder_device() -> torch.device:
    """The encoders' device: MRMODEL_ENCODER_DEVICE, else a GPU if available.

    Raises:
        ConfigError: the variable names no device, or one that is not available.
    """
    return pick_device(os.environ.get(DEVICE_VARIABLE) or "auto", DEVICE_VARIABLE)


@torch.inference_mode()
def run_on_clips(
    run: Callable[[Tensor], Tensor], frames: Frames, device: torch.device, size: int
) -> list[Rows]:
    """Encode clips to one float32 row per clip.

    Args:
        run: (B, T, H, W, 3) uint8 on the device -> (B, dim).
        frames: (n, T, H, W, 3) uint8.
        device: where `run` computes.
        size: B; a smaller remainder is padded to it.
    """
    rows: list[Rows] = []
    for start in range(0, len(frames), size):
        part = frames[start : start + size]
        if len(part) < size:
            part = np.concatenate([part, *[part[:1]] * (size - len(part))])
        # PyTorch rejects read-only arrays and negative strides: those are copied.
        batch = torch.from_numpy(np.require(part, requirements=["C", "W"])).to(device)
        with _exact_convolutions():
            rows.extend(run(batch)[: len(frames) - start].float().cpu().numpy())
    return rows


def _exact_convolutions() -> AbstractContextManager[None]:
    """Convolutions without TF32 and with deterministic kernels only.

    A GPU's rows are then as close to the CPU's as float32 allows.
    """
    exact: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return exact


class TokenBatches:
    """Runs a network on texts, in batches of equal length: no padding, so no mask is needed.

    Args:
        run: (B, N) int64 on the device -> (B, N, width).
        device: where `run` computes.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], device: torch.device | str = "cpu") -> None:
        self._run, self._device = run, torch.device(device)
        self._same: dict[tuple[int, int, int], bool] = {}

    @torch.inference_mode()
    def __call__(self, token_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Token ids of each text -> one (n_tokens, width) tensor per text, on the CPU."""
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for index, ids in enumerate(token_ids):
            by_length[len(ids)].append(index)
        states: list[Tensor] = [torch.empty(0)] * len(token_ids)
        for members in by_length.values():
            for start in range(0, len(members), TEXT_BATCH):
                part = members[start : start + TEXT_BATCH]
                filled = part + part[:1] * (TEXT_BATCH - len(part))
                batch = torch.tensor([token_ids[index] for index in filled], device=self._device)
                if self._needs_no_filling(batch, len(part)):
                    batch = batch[: len(part)]
                for index, row in zip(part, self._run(batch).float().cpu(), strict=False):
                    states[index] = row
        return states

    def _needs_no_filling(self, batch: Tensor, count: int) -> bool:
        """Whether the first `count` texts alone have the bits that they have in a full batch.

        Which kernels run, and so the order of sums, depends on shapes and threads: one comparison
        decides for all texts of a length.
        """
        if count == TEXT_BATCH or self._device.type != "cpu":
            return False
        shape = (count, batch.shape[1], torch.get_num_threads())
        if shape not in self._same:
            alone = self._run(batch[:count])
            self._same[shape] = torch.equal(alone, self._run(batch)[:count])
        return self._same[shape]


# 2: patch embedding as a matrix product, convolutions without TF32.
_CLIPS_SCHEMA = 2


C = TypeVar("C", bound=SetConfig)


class _UserWeightsEncoder(ABC, Generic[C]):
    """An encoder of the weight set `set_name`.

    Args:
        weights: replaces the set in the user's weights folder.

    Attributes:
        config_type: class of the set's config.json.
        network: makes the network from it.
        width: dotted name in it of the number of channels, which must be `dim`.
    """

    name: ClassVar[str]
    set_name: ClassVar[str]
    dim: ClassVar[int]
    config_type: type[C]
    network: ClassVar[type[nn.Module]]
    width: ClassVar[str] = "projection"
    # Their major versions are part of the fingerprint.
    libraries: ClassVar[tuple[str, ...]] = ("torch",)

    def __init__(self, weights: WeightSet | None = None) -> None:
        self.weights = weights or WeightSet(self.set_name)
        self.device = encoder_device()

    @cached_property
    def config(self) -> C:
        """config.json of the set, checked to fit `dim`.

        Raises:
            WeightsError: the set is missing, or is another one.
        """
        config = self.weights.config(self.config_type)
        self.weights.require_width(self.width, attrgetter(self.width)(config), self.dim)
        return config

    @cached_property
    def _model(self) -> Any:
        return self.weights.load(lambda: self.network(self.config), self.device, self.config.dtype)

    @abstractmethod
    def _run(self, batch: Tensor) -> Tensor:
        """Run the network on a batch on the device."""

    def _recipe(self) -> dict[str, object]:
        """The part of a fingerprint that depends on the set; reads no weights."""
        return {"config": self.config.model_dump(mode="json"), "weights": self.weights.digests()}


class UserWeightsVideoEncoder(_UserWeightsEncoder[C]):
    """A network over the frames of a clip."""

    modality: ClassVar[Modality] = "video"
    # Batch size on a GPU: larger ones are hardly faster (benchmarks/RESULTS.md).
    gpu_batch: ClassVar[int]

    @property
    @abstractmethod
    def sampling(self) -> FrameSampling:
        """Which frames of a clip are used, and at what size."""

    @property
    def batch_clips(self) -> int:
        """Batch size in clips."""
        return 1 if self.device.type == "cpu" else self.gpu_batch

    def encode_clips(self, frames: Frames) -> Rows:
        """(n, T, H, W, 3) uint8 RGB as `sampling` asks -> (n, dim) float32."""
        check_frames(frames, self.sampling)
        rows = run_on_clips(self._run, frames, self.device, self.batch_clips)
        return np.array(rows, dtype=np.float32).reshape(-1, self.dim)

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides the rows."""
        shared = describe_encoder(
            self.name, self.dim, self.libraries, sampling=self.sampling, schema=_CLIPS_SCHEMA
        )
        return shared | self._recipe()


class UserWeightsTextEncoder(_UserWeightsEncoder[C]):
    """A network over the tokens of a sentence."""

    modality: ClassVar[Modality] = "text"
    layout: ClassVar[RowLayout]
    languages: ClassVar[tuple[str, ...]] = ("English",)

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Longer texts are truncated; start and end tokens count."""

    def token_counts(self, text: str) -> TokenCounts:
        """Tokens, and those that it cannot read."""
        return count_tokens(self._tokenizer, text)

    def encode_texts(self, texts: Sequence[str]) -> list[Rows]:
        """One (n_rows, dim) float32 array per text, rows in the order of `layout`."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        return [self._arrange(states) for states in self._batches(ids)]

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides the rows."""
        shared = describe_encoder(self.name, self.dim, (*self.libraries, "tokenizers"))
        return shared | {"layout": self.layout, "max_tokens": self.max_tokens} | self._recipe()

    @cached_property
    def _batches(self) -> TokenBatches:
        return TokenBatches(self._run, self.device)

    def _run(self, batch: Tensor) -> Tensor:
        states: Tensor = self._model(batch)
        return states

    def _arrange(self, states: Tensor) -> Rows:
        """Turn the states of all tokens, special ones included, into the stored rows."""
        rows: Rows = states.numpy()
        return rows

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self.weights.tokenizer()
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens)
        return tokenizer


Colour = tuple[float, float, float]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_SPREAD: Colour = (0.229, 0.224, 0.225)
CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_SPREAD: Colour = (0.26862954, 0.26130258, 0.27577711)


def normalise_pixels(
    frames: Tensor, mean: Sequence[float], spread: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W): (x / 255 - mean) / spread, in float32, then cast."""
    centre = torch.tensor(mean, device=frames.device)
    scale = torch.tensor(spread, device=frames.device)
    return ((frames.float() / 255.0 - centre) / scale).movedim(-1, -3).to(dtype)


def embed_patches(pictures: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution with non-overlapping patches, computed as a matrix product.

    cuDNN's convolutions use TF32 by default and may not be deterministic.

    Args:
        pictures: (B, 3, H, W); pixels beyond the last whole patch are ignored.
        weight: (width, 3, patch, patch), or with a frame axis of length 1 after the colours.
        bias: (width,).

    Returns:
        (B, patches, width), row by row.
    """
    size = weight.shape[-1]
    cut = pictures.unfold(2, size, size).unfold(3, size, size)  # (B, 3, rows, columns, size, size)
    rows = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return F.linear(rows, weight.flatten(1), bias)
