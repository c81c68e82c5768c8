"""GloVe word vectors of a sentence, looked up as in the published VGG recipes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import FeatureError
from mrmodel.lines import byte_lines

Floats = NDArray[np.float32]


class WordVectors:
    """GloVe vectors of the words in some sentences.

    Words are split at white space and lower-cased; a word that is not in the file is a row of
    zeros. So ``light.`` at the end of a sentence is unknown, as in the published recipes.
    """

    def __init__(self, dim: int, vectors: dict[str, Floats]) -> None:
        self.dim, self._vectors = dim, vectors

    @classmethod
    def read(cls, path: Path, dim: int, sentences: Iterable[str]) -> WordVectors:
        """Read a text file of one word and `dim` numbers per line; keeps only words of `sentences`.

        Raises:
            DataError: the file cannot be read.
            FeatureError: a line has other values, or the file holds none of the words.
        """
        words = {word.encode(): word for sentence in sentences for word in _words(sentence)}
        vectors: dict[str, Floats] = {}
        for line, text in enumerate(byte_lines(path), start=1):
            letters, _, rest = text.partition(b" ")
            word = words.get(letters)
            if word is None:
                continue
            try:
                vector = np.array(rest.split(), dtype=np.float32)
            except ValueError as error:
                raise FeatureError(f"{path}:{line}: no word vector: {error}") from None
            if len(vector) != dim:
                rule = f"{word!r} has {len(vector)} values, expected {dim}"
                raise FeatureError(f"{path}:{line}: {rule}")
            vectors[word] = vector
        if not vectors:
            raise FeatureError(f"{path}: holds none of the {len(words)} words of the queries")
        return cls(dim, vectors)

    def rows(self, sentence: str) -> Floats:
        """(words, dim) vectors of a sentence, in its order."""
        nothing = np.zeros(self.dim, np.float32)
        return np.stack([self._vectors.get(word, nothing) for word in _words(sentence)])


def _words(sentence: str) -> list[str]:
    return sentence.lower().split()
