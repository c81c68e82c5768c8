"""Sizes of a network, read off its tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mrmodel.errors import CheckpointError


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
