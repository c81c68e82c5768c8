"""Encoders for tests: no weights, microseconds per clip, output depends on the content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np

from mrmodel.encoders.base import (
    Frames,
    Modality,
    RowLayout,
    Rows,
    TokenCounts,
    check_frames,
    describe_encoder,
)
from mrmodel.files import derive_seed
from mrmodel.video.sampling import FrameSampling

GRID = 8
INPUTS = 2 * GRID * GRID * 3
_WORD = re.compile(r"\w+|[^\w\s]")


class TinyVideoEncoder:
    """A fixed random projection of two 8x8 colour grids: the mean frame and the temporal change.

    A bias keeps a black clip from being a zero row.
    """

    name: ClassVar[str] = "tiny.video"
    modality: ClassVar[Modality] = "video"
    dim: ClassVar[int] = 32
    sampling = FrameSampling(2, (32, 32), "middle", "area")
    batch_clips: ClassVar[int] = 1

    def encode_clips(self, frames: Frames) -> Rows:
        """(n, 2, 32, 32, 3) uint8 -> (n, 32) float32."""
        check_frames(frames, self.sampling)
        cell = frames.shape[2] // GRID
        cells = frames.reshape(len(frames), 2, GRID, cell, GRID, cell, 3)
        grids = cells.mean(axis=(3, 5), dtype=np.float64) / 255.0
        first, last = grids[:, 0], grids[:, 1]
        inputs = np.stack(((first + last) / 2, last - first), axis=1).reshape(-1, INPUTS)
        # Row by row: rounding in a matrix product may depend on the number of rows.
        rows = [row @ self._projection[1:] + self._projection[0] for row in inputs]
        return np.array(rows, dtype=np.float32).reshape(-1, self.dim)

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides the rows."""
        return describe_encoder(self.name, self.dim, ["numpy"], sampling=self.sampling)

    @cached_property
    def _projection(self) -> np.ndarray:
        rng = np.random.default_rng(derive_seed(self.name, "projection"))
        return np.asarray(rng.standard_normal((1 + INPUTS, self.dim)) / np.sqrt(INPUTS))


class TinyTextEncoder:
    """A fixed random unit vector per word, from a hash of it; the sentence vector is their mean."""

    name: ClassVar[str] = "tiny.text"
    modality: ClassVar[Modality] = "text"
    dim: ClassVar[int] = 32
    layout: ClassVar[RowLayout] = "sentence, tokens"
    languages: ClassVar[tuple[str, ...]] = ()

    def token_counts(self, text: str) -> TokenCounts:
        """Words and signs; each has a vector."""
        return TokenCounts(len(_WORD.findall(text)), 0)

    def encode_texts(self, texts: Sequence[str]) -> list[Rows]:
        """One (1 + n_words, 32) float32 array per text, the sentence vector first."""
        return [self._encode(text) for text in texts]

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides the rows."""
        return describe_encoder(self.name, self.dim, ["numpy"])

    def _encode(self, text: str) -> Rows:
        words = [self._vector(word) for word in _WORD.findall(text.lower())]
        sentence = np.mean(words, axis=0) if words else self._vector("")
        rows = np.stack([sentence / np.linalg.norm(sentence), *words])
        return rows.astype(np.float32)

    def _vector(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        vector = np.random.default_rng(seed).standard_normal(self.dim)
        return np.asarray(vector / np.linalg.norm(vector))
