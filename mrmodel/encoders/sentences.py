"""Sentences through MiniLM, in batches whose shape does not depend on what is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.encoders.minilm import load_minilm
from mrmodel.encoders.running import run_on_tokens
from mrmodel.encoders.weights import WeightsLock


class SentenceModel:
    """MiniLM and its tokenizer.

    Args:
        lock: where the weights are.

    Raises:
        WeightsError: a file is missing or is not the pinned one.
    """

    def __init__(self, lock: WeightsLock) -> None:
        self._model, self._tokenizer = load_minilm(lock)

    def token_states(self, texts: Sequence[str]) -> list[Tensor]:
        """One (n_tokens, 384) tensor a text, [CLS] and [SEP] included."""
        return run_on_tokens(self._model, [self._tokenizer.encode(text).ids for text in texts])

    def sentence_vectors(self, texts: Sequence[str]) -> Tensor:
        """(n, 384) of unit length: the mean of all token states, as MiniLM was trained."""
        return torch.stack([sentence_vector(states) for states in self.token_states(texts)])


def sentence_vector(states: Tensor) -> Tensor:
    """(n_tokens, 384) -> (384,) of unit length."""
    return F.normalize(states.mean(dim=0), dim=-1)
