"""Reading a published checkpoint without running the code that may hide in it.

A checkpoint of PyTorch is a pickle, and a pickle can name any function to call. Here only tensors,
plain containers and the few types below are made; a file that names anything else is refused.
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

# What a pickled number of NumPy is made with; it moved between NumPy's versions.
_NUMBER = np.float64().__reduce__()[0]
# What published files hold beside tensors: the options of the trainer, and numbers of NumPy. None
# of them does more than hold values. Lighthouse's options are a dict that is no standard type; an
# ordered dict takes its place, so its package is never imported.
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
class PublishedFile:
    """What a checkpoint holds.

    Attributes:
        tensors: parameters under their published names, without the prefix ``module.``.
        options: options of the trainer by name; empty where the file has none.
        lighthouse: the options are of the kind that lighthouse saves.
    """

    tensors: dict[str, Tensor]
    options: dict[str, Any]
    lighthouse: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_published(path: Path) -> PublishedFile:
    """Read the weights and the options of a checkpoint.

    Taken are the published container (``model`` and ``opt``), ``state_dict`` in place of ``model``,
    a bare state dict, and safetensors.

    Raises:
        CheckpointError: the file is missing, is no checkpoint, names code, or holds something else
            than plain tensors of finite numbers, each under one name.
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
    return PublishedFile(tensors, dict(options), lighthouse)


def load_plain(path: Path) -> Mapping[str, Any]:
    """What a checkpoint or a safetensors file holds, made of tensors and plain values only.

    Raises:
        CheckpointError: it cannot be read, names code, or holds no mapping.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)  # type: ignore[no-any-return]
        with torch.serialization.safe_globals(_HARMLESS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can end the reader anywhere, with any exception.
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
