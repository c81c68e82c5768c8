"""How the published files of one weight set are read, and the sizes of its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor, nn

from mrmodel.encoders.user_weights import SetConfig
from mrmodel.errors import CheckpointError, WeightsError


@dataclass(frozen=True, slots=True)
class TextReading:
    """What a set that reads text needs beside tensors.

    Attributes:
        tokenizer: makes one of a published vocabulary file.
        sizes: configuration -> how many words a vocabulary of these weights may have.
    """

    tokenizer: Callable[[Path], Tokenizer]
    sizes: Callable[[Any], tuple[int, ...]]

    def require_size(self, source: Path, tokenizer: Tokenizer, config: SetConfig) -> None:
        """Check that a vocabulary is that of the weights, as far as its size tells.

        Raises:
            WeightsError: it has another number of words.
        """
        found, expected = tokenizer.get_vocab_size(with_added_tokens=False), self.sizes(config)
        if found not in expected:
            wanted = " or ".join(map(str, expected))
            raise WeightsError(f"{source}: holds {found} words, the weights are for {wanted}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One weight set.

    Attributes:
        config: what its config.json is.
        networks: configuration -> all networks of the set.
        convert: published tensors -> configuration, and tensors in the names of the networks.
        text: for a set that reads text.
        read: tensors of a file format that is the set's own; None from it for any other file.
    """

    config: type[SetConfig]
    networks: Callable[[Any], tuple[nn.Module, ...]]
    convert: Callable[[Mapping[str, Tensor]], tuple[SetConfig, dict[str, Tensor]]]
    text: TextReading | None = None
    read: Callable[[Path], dict[str, Tensor] | None] | None = None


def size_of(tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    """Length of a tensor along an axis.

    Raises:
        CheckpointError: there is no such tensor, or it has no such axis.
    """
    if name not in tensors:
        raise CheckpointError(f"{name} is missing, and a size of the network follows from it")
    shape = tuple(tensors[name].shape)
    if len(shape) <= axis:
        raise CheckpointError(f"{name} is {shape}; expected more axes")
    return shape[axis]


def count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbers follow `prefix` in the names."""
    return len(
        {name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)}
    )
