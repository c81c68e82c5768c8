"""What writes captions of frames, and what compares frames with captions.

`PhraseBank` needs nothing but two aligned encoders: it writes no sentence, it chooses the nearest
phrase of a list. `blip` has the networks that VideoLights names.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from mrmodel.encoders.base import Frames, Rows, TextEncoder, VideoEncoder
from mrmodel.errors import DataError
from mrmodel.features.extraction.encode import encode_texts
from mrmodel.video.sampling import FrameSampling

_EPSILON = 1e-6


class Captioner(Protocol):
    """Describes clips by their frames."""

    def caption(self, frames: Frames) -> list[str]:
        """(n, T, H, W, 3) uint8 RGB of n clips -> one caption each, which may be empty."""


class Scorer(Protocol):
    """Compares clips with captions, and both among themselves."""

    @property
    def sampling(self) -> FrameSampling:
        """The T frames of a clip that it needs, and their size; the captioner gets the same."""

    def score(self, frames: Frames, texts: Sequence[str]) -> Rows:
        """(n, T, H, W, 3) and n texts -> (n,): how well a clip and the text of its index match."""

    def image_vectors(self, frames: Frames) -> Rows:
        """(n, T, H, W, 3) uint8 RGB -> (n, d) of unit length."""

    def text_vectors(self, texts: Sequence[str]) -> Rows:
        """Vectors of n texts, (n, d) of unit length."""


def unit(rows: Rows) -> Rows:
    """Rows (n, d) of unit length; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Rows = (rows / np.maximum(lengths, _EPSILON)).astype(np.float32)
    return scaled


class PhraseBank:
    """A captioner and scorer from two aligned encoders and a list of phrases.

    Args:
        video, text: encoders whose clips and sentences can be compared.
        phrases: the captions to choose from.

    Raises:
        DataError: there is no phrase.
    """

    def __init__(self, video: VideoEncoder, text: TextEncoder, phrases: Sequence[str]) -> None:
        if not phrases:
            rule = "captioner 'phrases': no usable phrase in captions.jsonl, from which it chooses"
            raise DataError(rule)
        self._video, self._text, self._phrases = video, text, list(phrases)

    @property
    def sampling(self) -> FrameSampling:
        """That of the video encoder."""
        return self._video.sampling

    def caption(self, frames: Frames) -> list[str]:
        """The nearest phrase of each clip; of equally near ones the first in the list."""
        near = self.image_vectors(frames) @ self._bank.T
        return [self._phrases[index] for index in near.argmax(axis=1).tolist()]

    def score(self, frames: Frames, texts: Sequence[str]) -> Rows:
        """Cosines of clips and texts, (n,)."""
        cosines: Rows = (self.image_vectors(frames) * self.text_vectors(texts)).sum(axis=1)
        return cosines

    def image_vectors(self, frames: Frames) -> Rows:
        """(n, d) of unit length."""
        return unit(self._video.encode_clips(frames))

    def text_vectors(self, texts: Sequence[str]) -> Rows:
        """Sentence vectors, (n, d) of unit length; equal texts are encoded once."""
        distinct = list(dict.fromkeys(texts))
        rows = unit(np.stack([rows[0] for rows in encode_texts(distinct, self._text)]))
        return rows[[distinct.index(text) for text in texts]]

    @cached_property
    def _bank(self) -> Rows:
        return self.text_vectors(self._phrases)
