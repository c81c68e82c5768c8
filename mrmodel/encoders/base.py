"""The encoder interfaces: clips (or sentences) in, the rows of one feature stream out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import av
import numpy as np
from numpy.typing import NDArray

from mrmodel.components import ENCODERS
from mrmodel.text import other_scripts
from mrmodel.video.sampling import FrameSampling

Frames = NDArray[np.uint8]
Rows = NDArray[np.float32]
Modality = Literal["video", "text"]
# The rows of a text, in order. A sentence vector can be compared with the clips of the matching
# video stream; a start token cannot.
RowLayout = Literal["sentence, tokens", "sentence, tokens, end", "start, tokens, end"]

# Incremented when a code change alters the rows of the same weights; an encoder may have its own.
SCHEMA = 1
CACHE_VARIABLE = "MRMODEL_CACHE_DIR"


class TokenCounts(NamedTuple):
    """Tokens of a text, without marks of start and end, and those that an encoder cannot read.

    Those are all tokens outside of its vocabulary, which are alike to it, and pieces of words in
    another script than that of its languages, which mean nothing to it.
    """

    total: int
    unread: int


@runtime_checkable
class VideoEncoder(Protocol):
    """Encodes clips; constructed without arguments, it loads its weights on first use."""

    name: ClassVar[str]
    modality: ClassVar[Modality]
    dim: ClassVar[int]

    @property
    def sampling(self) -> FrameSampling:
        """Which frames of a clip it needs, and at what size."""

    @property
    def batch_clips(self) -> int:
        """Preferred batch size in clips, of any videos; 1: batching gains nothing.

        With 1, extraction runs one encoder per process, else one for all (`gpu_batcher`).
        """

    def encode_clips(self, frames: Frames) -> Rows:
        """(n, T, H, W, 3) uint8 RGB as `sampling` asks -> (n, dim); row i depends on clip i alone.

        Exactly so on a CPU; on a GPU rounding may depend on the position in the batch
        (benchmarks/RESULTS.md lists the encoders).

        Raises:
            WeightsError: the weights are missing or are not the pinned ones.
        """

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides the rows, JSON-able; reads no weights."""


@runtime_checkable
class TextEncoder(Protocol):
    """Encodes sentences; constructed without arguments, it loads its weights on first use."""

    name: ClassVar[str]
    modality: ClassVar[Modality]
    dim: ClassVar[int]
    layout: ClassVar[RowLayout]
    # That it was trained to read, in words; empty: none, its rows are the same for any language.
    languages: ClassVar[tuple[str, ...]]

    def token_counts(self, text: str) -> TokenCounts:
        """How much of a text it reads.

        Raises:
            WeightsError: the vocabulary is missing or is not the pinned one.
        """

    def encode_texts(self, texts: Sequence[str]) -> list[Rows]:
        """One (n_rows, dim) array per text: rows as in `layout`, tokens in order.

        A text's rows do not depend on the other texts.

        Raises:
            WeightsError: the weights are missing or are not the pinned ones.
        """

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides the rows, JSON-able; reads no weights."""


def count_tokens(tokenizer: Any, text: str) -> TokenCounts:
    """Count with a tokenizer (of the package `tokenizers`) of a language in Latin script."""
    found, other = tokenizer.encode(text, add_special_tokens=False), other_scripts(text)
    pieces = zip(found.tokens, found.offsets, strict=True)
    unknown = tokenizer.model.unk_token
    unread = [token == unknown or any(other[slice(*place)]) for token, place in pieces]
    return TokenCounts(len(unread), sum(unread))


def build_encoder(name: str) -> VideoEncoder | TextEncoder:
    """Create the registered encoder `name`.

    Raises:
        UnknownNameError: no such encoder.
    """
    encoder: VideoEncoder | TextEncoder = ENCODERS.get(name)()
    return encoder


def are_aligned(video: str, text: str) -> bool:
    """Whether clips of one registered encoder can be compared with sentences of another.

    They can if both are networks of one family, which the first part of their names tells, of one
    width, and the text encoder gives a sentence vector.

    Raises:
        UnknownNameError: no such encoder.
    """
    clips, sentences = ENCODERS.get(video), ENCODERS.get(text)
    return bool(
        video.partition(".")[0] == text.partition(".")[0]
        and (clips.modality, sentences.modality) == ("video", "text")
        and clips.dim == sentences.dim
        and sentences.layout.startswith("sentence")
    )


def check_frames(frames: Frames, sampling: FrameSampling) -> None:
    """Reject clips that do not match `sampling`.

    Raises:
        ValueError: wrong type or shape.
    """
    shape = frames.shape
    wrong = (
        frames.dtype != np.uint8
        or len(shape) != 5
        or shape[1] != sampling.frames_per_clip
        or shape[4] != 3
        or (sampling.size is not None and (shape[3], shape[2]) != sampling.size)
    )
    if wrong:
        size = sampling.size or ("W", "H")
        expected = f"(n, {sampling.frames_per_clip}, {size[1]}, {size[0]}, 3) uint8"
        raise ValueError(f"clips of shape {shape} {frames.dtype}; expected {expected}")


def describe_encoder(
    name: str,
    dim: int,
    libraries: Sequence[str],
    *,
    sampling: FrameSampling | None = None,
    schema: int = SCHEMA,
) -> dict[str, object]:
    """The common part of all encoder fingerprints; of `libraries` the major version counts."""
    majors: dict[str, object] = {library: _major(version(library)) for library in libraries}
    if sampling is not None:
        majors |= {"av": _major(version("av")), "libswscale": av.library_versions["libswscale"][0]}
    return {
        "encoder": name,
        "schema": schema,
        "dim": dim,
        "sampling": None if sampling is None else sampling.as_json(),
        "libraries": majors,
    }


def cache_folder(chosen: Path | None = None) -> Path:
    """The cache folder for derived files.

    `chosen`, else the folder named by MRMODEL_CACHE_DIR, else the user's cache folder.
    """
    if chosen is not None:
        return chosen
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mrmodel"


def _major(text: str) -> int:
    return int(text.split(".")[0])
