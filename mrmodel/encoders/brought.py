"""What all encoders share whose weights the user brings (`weight_sets`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from mrmodel.encoders.base import Frames, Modality, RowLayout, Rows, check_frames, describe
from mrmodel.encoders.running import encoder_device, run_on_clips, run_on_tokens
from mrmodel.encoders.weight_sets import SetConfig, WeightSet
from mrmodel.video.sampling import FrameSampling

# 2: patches by a matrix product, convolutions without TF32.
_CLIPS_SCHEMA = 2


class _Brought(ABC):
    """An encoder of the weight set `set_name`.

    Args:
        weights: another set than the user's.
    """

    name: ClassVar[str]
    set_name: ClassVar[str]
    dim: ClassVar[int]
    # Their major versions count in the fingerprint.
    libraries: ClassVar[tuple[str, ...]] = ("torch",)

    def __init__(self, weights: WeightSet | None = None) -> None:
        self.weights = weights or WeightSet(self.set_name)
        self.device = encoder_device()

    @property
    @abstractmethod
    def config(self) -> SetConfig:
        """config.json of the set, checked to fit `dim`.

        Raises:
            WeightsError: the set is not there, or is another one.
        """

    @abstractmethod
    def _run(self, batch: Tensor) -> Tensor:
        """The network on a batch that lies on the device."""

    def _recipe(self) -> dict[str, object]:
        """The part of a fingerprint that the set decides; reads no weights."""
        return {"config": self.config.model_dump(mode="json"), "weights": self.weights.digests()}


class BroughtVideoEncoder(_Brought):
    """A network over the frames of a clip."""

    modality: ClassVar[Modality] = "video"
    # Clips at a time on a GPU: where more of them are hardly faster (benchmarks/RESULTS.md).
    gpu_batch: ClassVar[int]

    @property
    @abstractmethod
    def sampling(self) -> FrameSampling:
        """Which frames of a clip, and at what size."""

    @property
    def batch_clips(self) -> int:
        """Clips at a time."""
        return 1 if self.device.type == "cpu" else self.gpu_batch

    def encode_clips(self, frames: Frames) -> Rows:
        """(n, T, H, W, 3) uint8 RGB as `sampling` asks -> (n, dim) float32."""
        check_frames(frames, self.sampling)
        rows = run_on_clips(self._run, frames, self.device, self.batch_clips)
        return np.array(rows, dtype=np.float32).reshape(-1, self.dim)

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides the rows."""
        shared = describe(
            self.name, self.dim, self.libraries, sampling=self.sampling, schema=_CLIPS_SCHEMA
        )
        return shared | self._recipe()


class BroughtTextEncoder(_Brought):
    """A network over the tokens of a sentence."""

    modality: ClassVar[Modality] = "text"
    layout: ClassVar[RowLayout]

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Longer texts are cut; marks at the start and the end count."""

    def encode_texts(self, texts: Sequence[str]) -> list[Rows]:
        """One (n_rows, dim) float32 array a text, rows in the order of `layout`."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        return [self._arrange(states) for states in run_on_tokens(self._run, ids, self.device)]

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides the rows."""
        shared = describe(self.name, self.dim, (*self.libraries, "tokenizers"))
        return shared | {"layout": self.layout, "max_tokens": self.max_tokens} | self._recipe()

    def _arrange(self, states: Tensor) -> Rows:
        """From the states of all tokens, marks included, to the rows that are stored."""
        rows: Rows = states.numpy()
        return rows

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self.weights.tokenizer()
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens)
        return tokenizer
