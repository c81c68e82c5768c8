"""Reads a published checkpoint without executing code in it.

A PyTorch checkpoint is a pickle, and a pickle can call any function. Here only tensors, plain
containers and the few types below are built; a file that refers to anything else is rejected.
"""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mrmodel.errors import CheckpointError

# Constructor of a pickled NumPy scalar, whose module depends on the NumPy version.
_NUMBER = np.float64().__reduce__()[0]
# Non-tensor types in published files: the options of the trainer, and NumPy scalars. All of them
# only hold values. Lighthouse's options are a non-standard dict type, which an ordered dict
# replaces, so its package is never imported.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (OrderedDict, "easydict.EasyDict"),
    (_NUMBER, "numpy._core.multiarray.scalar"),
    (_NUMBER, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]
_WEIGHTS = ("model", "state_dict", "model_state_dict")
_OPTIONS = ("opt", "args")


@dataclass(frozen=True, slots=True)
class PublishedCheckpoint:
    """Content of a checkpoint.

    Attributes:
        tensors: parameters under their published names, without the prefix ``module.``.
        options: options of the trainer by name; empty if the file has none.
        lighthouse: whether lighthouse saved the options.
    """

    tensors: dict[str, Tensor]
    options: dict[str, Any]
    lighthouse: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_published(path: Path) -> PublishedCheckpoint:
    """Read the weights and the options of a checkpoint.

    Supports the published container (``model`` and ``opt``), ``state_dict`` in place of ``model``,
    a bare state dict, and safetensors.

    Raises:
        CheckpointError: the file is missing, is not a checkpoint, refers to code, or holds anything
            but plain tensors of finite numbers, each under one name.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    loaded = load_plain(path)
    inner = next((key for key in _WEIGHTS if isinstance(loaded.get(key), Mapping)), None)
    tensors = _tensors(path, loaded if inner is None else loaded[inner])
    options: Any = {}
    if inner is not None:
        options = next((loaded[key] for key in _OPTIONS if key in loaded), {})
    lighthouse = isinstance(options, OrderedDict)
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    if not isinstance(options, Mapping):
        kind = type(options).__name__
        raise CheckpointError(f"{path}: its options are a {kind}, expected names with values")
    return PublishedCheckpoint(tensors, dict(options), lighthouse)


def load_plain(path: Path) -> Mapping[str, Any]:
    """Load a checkpoint or safetensors file as tensors and plain values only.

    Raises:
        CheckpointError: it cannot be read, refers to code, or does not hold a mapping.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)  # type: ignore[no-any-return]
        with torch.serialization.safe_globals(_HARMLESS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can raise any exception.
    except Exception as error:
        raise CheckpointError(f"{path}: {_reason(error)}") from None
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, expected a state dict")
    return loaded


def _reason(error: Exception) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named is None:
        return f"cannot be read as a checkpoint ({type(error).__name__})"
    return (
        f"names {named[1]}, which is no tensor and none of the plain types that checkpoints need; "
        "reading on could run code, so the file is refused"
    )


def _tensors(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: {name!r} is no name of a tensor")
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{path}: {name!r} is a {kind}, expected a tensor")
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise CheckpointError(f"{path}: {name} is of {kind}; expected plain real numbers")
        if not tensor.float().isfinite().all():
            raise CheckpointError(f"{path}: {name} holds NaN, infinity or what is that in float32")
        plain = name.removeprefix("module.")
        if plain in tensors:
            raise CheckpointError(f"{path}: has {plain} both with and without `module.` in front")
        tensors[plain] = tensor
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor")
    return tensors
