"""The default encoders: images and sentences in one 384-channel space, from pip packages only."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from mrmodel.encoders import alignment
from mrmodel.encoders.base import (
    Frames,
    Modality,
    RowLayout,
    Rows,
    TokenCounts,
    cache_folder,
    check_frames,
    describe_encoder,
)
from mrmodel.encoders.bundled_weights import WeightsLock
from mrmodel.encoders.minilm import MAX_TOKENS, WIDTH, SentenceModel, sentence_vector
from mrmodel.errors import WeightsError
from mrmodel.files import atomic_path, digest_of, one_at_a_time
from mrmodel.video.sampling import FrameSampling

_log = logging.getLogger(__name__)


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """`target`, built by `build(temporary path)` if it does not exist.

    Other processes that need it wait; if the builder dies, its lock is released and one of them
    builds. An existing file is complete.
    """
    if target.exists():
        return target
    with one_at_a_time(target.with_name(f"{target.name}.lock")):
        if not target.exists():
            _log.info("building %s (once a machine)", target)
            with atomic_path(target) as temporary:
                build(temporary)
    return target


Backend = Literal["onnx", "torch"]
IMAGE_WEIGHTS = ("efficientnet_lite0.weights", "imagenet.descriptions", "imagenet.names")
TEXT_WEIGHTS = ("minilm.weights", "minilm.tokenizer")


class AlignedVideoEncoder:
    """EfficientNet-Lite0 features, mapped into the space of MiniLM's sentence vectors.

    The alignment and the ONNX graph are slow to derive, so they are built once per machine, also
    with concurrent processes, and kept in the cache folder.

    Args:
        backend: ``onnx`` is fast, ``torch`` is the reference; they agree within 1e-4.
        cache_dir: see `cache_folder`.
        lock: where the weights are.
    """

    name: ClassVar[str] = "embedded.video"
    modality: ClassVar[Modality] = "video"
    dim: ClassVar[int] = WIDTH
    # By `python -m benchmarks.encoders`: 160 px ranks worse, 224 px no better. A second frame helps
    # HIT@1 (192 px: .41 -> .45), but the time is better spent on more videos.
    sampling = FrameSampling(1, (192, 192), "middle", "bicubic")
    batch_clips: ClassVar[int] = 1

    def __init__(
        self,
        *,
        backend: Backend = "onnx",
        cache_dir: Path | None = None,
        lock: WeightsLock | None = None,
    ) -> None:
        self._backend, self._cache_dir = backend, cache_dir
        self._lock = lock or WeightsLock()

    def encode_clips(self, frames: Frames) -> Rows:
        """(n, 1, 192, 192, 3) uint8 RGB -> (n, 384) float32 of unit length; clip by clip."""
        check_frames(frames, self.sampling)
        rows = [self._run(clip) for clip in frames]
        return np.array(rows, dtype=np.float32).reshape(-1, self.dim)

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides the rows, except the backend: both give the same rows."""
        shared = describe_encoder(
            self.name, self.dim, ["torch", "onnxruntime"], sampling=self.sampling
        )
        return shared | {
            "weights": self._lock.digests(*IMAGE_WEIGHTS, *TEXT_WEIGHTS),
            "temperature": alignment.TEMPERATURE,
            "ridge_penalty": alignment.RIDGE_PENALTY,
            "neutral_images": alignment.NEUTRAL_IMAGES,
        }

    @cached_property
    def _run(self) -> Callable[[Frames], Rows]:
        folder = cache_folder(self._cache_dir)
        stem = f"{self.name}-{digest_of(self.fingerprint())[:16]}"
        tensors = build_once(folder / f"{stem}.safetensors", self._build_tensors)
        if self._backend == "torch":
            return _torch_runner(tensors)
        exporter = f"torch{torch.__version__.split('+')[0]}"
        graph = build_once(
            folder / f"{stem}-{exporter}.onnx",
            lambda path: _export(tensors, self.sampling, path),
        )
        return _onnx_runner(graph)

    def _build_tensors(self, path: Path) -> None:
        size = self.sampling.size
        if size is None:
            raise ValueError("the aligned encoder needs a fixed picture size")
        alignment.save_aligned_model(alignment.build_aligned_model(self._lock, size), path)


class AlignedTextEncoder:
    """MiniLM-L6: the sentence vector, then one vector per word piece.

    The states of [CLS] and [SEP] enter the sentence vector, as in MiniLM's training, but are not
    returned as tokens: they stand for no word, and row 0 already is the summary.

    Args:
        lock: where the weights are.
    """

    name: ClassVar[str] = "embedded.text"
    modality: ClassVar[Modality] = "text"
    dim: ClassVar[int] = WIDTH
    layout: ClassVar[RowLayout] = "sentence, tokens"
    languages: ClassVar[tuple[str, ...]] = ("English",)

    def __init__(self, *, lock: WeightsLock | None = None) -> None:
        self._lock = lock or WeightsLock()

    def token_counts(self, text: str) -> TokenCounts:
        """Word pieces, and those that it cannot read."""
        return self._model.token_counts(text)

    def encode_texts(self, texts: Sequence[str]) -> list[Rows]:
        """One (1 + n_tokens, 384) float32 array per text; only row 0 has unit length."""
        return [
            torch.cat((sentence_vector(states)[None], states[1:-1])).numpy()
            for states in self._model.token_states(texts)
        ]

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides the rows."""
        shared = describe_encoder(self.name, self.dim, ["torch", "tokenizers"])
        weights = self._lock.digests(*TEXT_WEIGHTS)
        return shared | {"weights": weights, "max_tokens": MAX_TOKENS, "special_tokens": False}

    @cached_property
    def _model(self) -> SentenceModel:
        return SentenceModel(self._lock)


def _torch_runner(tensors: Path) -> Callable[[Frames], Rows]:
    model = alignment.load_aligned_model(tensors)

    @torch.inference_mode()
    def run(clip: Frames) -> Rows:
        row: Rows = model(torch.from_numpy(clip)).numpy()
        return row

    return run


def _onnx_runner(graph: Path) -> Callable[[Frames], Rows]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One process per core is faster than one process with all cores, and reproducible.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise WeightsError(
            f"{graph} cannot be loaded ({error}); delete it, it is rebuilt"
        ) from error

    def run(clip: Frames) -> Rows:
        row: Rows = session.run(None, {"frames": clip})[0]
        return row

    return run


def _export(tensors: Path, sampling: FrameSampling, path: Path) -> None:
    model = alignment.load_aligned_model(tensors)
    width, height = sampling.size or (0, 0)
    frames = torch.zeros(sampling.frames_per_clip, height, width, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # The tracing exporter is deprecated but has no dependencies; shapes are fixed on purpose.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (frames,), str(path), input_names=["frames"], output_names=["row"], dynamo=False
        )
