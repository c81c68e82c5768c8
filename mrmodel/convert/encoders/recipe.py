"""Recipes: how to read the published files of a weight set and infer its sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor, nn

from mrmodel.convert.settings import Shapes
from mrmodel.encoders.user_weights import SetConfig
from mrmodel.errors import WeightsError


@dataclass(frozen=True, slots=True)
class TextReading:
    """Conversion of the tokenizer of a set with a text encoder.

    Attributes:
        tokenizer: builds a tokenizer from a published vocabulary file.
        sizes: configuration -> possible vocabulary sizes of these weights.
    """

    tokenizer: Callable[[Path], Tokenizer]
    sizes: Callable[[Any], tuple[int, ...]]

    def require_size(self, source: Path, tokenizer: Tokenizer, config: SetConfig) -> None:
        """Check that a vocabulary has the size of the weights.

        Raises:
            WeightsError: it has another size.
        """
        found, expected = tokenizer.get_vocab_size(with_added_tokens=False), self.sizes(config)
        if found not in expected:
            wanted = " or ".join(map(str, expected))
            raise WeightsError(f"{source}: holds {found} words, the weights are for {wanted}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Conversion recipe of one weight set.

    Attributes:
        config: class of its config.json.
        networks: configuration -> all networks of the set.
        convert: published tensors -> configuration, and tensors under the networks' names.
        text: for a set with a text encoder.
        read: reads tensors of a format specific to the set; returns None for any other file.
    """

    config: type[SetConfig]
    networks: Callable[[Any], tuple[nn.Module, ...]]
    convert: Callable[[Mapping[str, Tensor]], tuple[SetConfig, dict[str, Tensor]]]
    text: TextReading | None = None
    read: Callable[[Path], dict[str, Tensor] | None] | None = None


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
