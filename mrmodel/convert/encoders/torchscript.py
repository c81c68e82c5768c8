"""Reads the tensors of a TorchScript archive, without compiling its code.

OpenAI published CLIP as such an archive. It is a zip file: one pickle with a tree of modules, one
file per tensor, and code. Only the tree and the tensors are read.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrmodel.convert.safe_unpickle import require_own_numbers
from mrmodel.errors import CheckpointError
from mrmodel.files import require_no_zip_bomb

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
# CLIP has some hundred.
_MOST_MODULES = 10_000
# Builders of typed lists; their first argument is the list.
_LISTS = {"build_intlist", "build_tensorlist", "build_doublelist", "build_boollist"}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip file with a pickled module and code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    has_code = any("/code/" in name for name in names)
    return has_code and any(name.endswith("/data.pkl") for name in names)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """All tensors by their dotted names.

    Raises:
        CheckpointError: the archive is damaged, or its tree refers to anything but modules and
            tensors.
    """
    tensors: dict[str, Tensor] = {}
    try:
        require_no_zip_bomb(path)
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(root) as file:
                module = _TreeReader(file, archive, root.removesuffix(".pkl")).load()
        tensors = _collect(module)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise any exception
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__})") from None
    require_own_numbers(path, tensors)
    return tensors


class _Module:
    """A module of the archive: its attributes, without its class."""


class _TreeReader(pickle._Unpickler):
    """Builds modules without behaviour, tensors, and plain containers; rejects the rest.

    The class in Python keeps its memo in a dict; the one in C would allocate any index at once.
    """

    def __init__(self, file: Any, archive: zipfile.ZipFile, data: str) -> None:
        super().__init__(file)
        self._archive, self._data = archive, data
        self._storages: dict[str, bytearray] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Resolve the few names that an archive may contain."""
        if module.partition(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        raise CheckpointError(f"names {module}.{name}; reading on could run code")

    def persistent_load(self, pid: Any) -> Tensor:
        """The flat tensor of ``("storage", dtype, file, location, count)``."""
        _, dtype, name, _, count = pid
        if name not in self._storages:
            self._storages[name] = bytearray(self._archive.read(f"{self._data}/{name}"))
        return torch.frombuffer(self._storages[name], dtype=dtype, count=count)


def _tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _collect(root: _Module) -> dict[str, Tensor]:
    """The tensors of a tree of modules, which may be anything: `_MOST_MODULES` are visited."""
    tensors: dict[str, Tensor] = {}
    left, visited = [("", root)], 0
    while left:
        prefix, module = left.pop()
        visited += 1
        if visited > _MOST_MODULES:
            raise CheckpointError(f"its tree has more than {_MOST_MODULES} modules, or a cycle")
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, _Module):
                left.append((f"{prefix}{name}.", value))
    return tensors
