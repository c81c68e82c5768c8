"""Reads a published checkpoint without executing code in it.

A PyTorch checkpoint is a pickle, and a pickle can call any function. Here only tensors, plain
containers and the few types below are built; a file that refers to anything else is rejected.

Checkpoints of PyTorch Lightning do refer to classes of their trainer. In such a file a stand-in
takes the place of everything but plain containers, so nothing of it is imported or called, and only
the tensors of its ``state_dict`` are built.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from zipfile import ZipFile

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mrmodel.errors import CheckpointError
from mrmodel.files import require_no_zip_bomb, stand_in

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

# Lightning: the key that only its checkpoints have, and what precedes the names of the model's
# tensors. Other names in its state dict are of losses and metrics.
_LIGHTNING = "pytorch-lightning_version"
_MODEL = "model."
# What data parallelism and averaging put in front, and what torch.compile, FSDP and activation
# checkpointing put before the names of the modules that they wrap.
_PARALLEL = re.compile(r"^(?:module\.)+")
_WRAPPED = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# A counter that averaging (SWA, EMA) saves beside the tensors.
_AVERAGED = "n_averaged"
# The options there, and the only one that is read: the data set.
_SAVED = "hyper_parameters"
# Of the pickle alone: tensors lie beside it.
_MOST_BYTES = 64 << 20
# How many times as large as their storages all tensors may be: layers may share parts.
_MOST_SHARED = 4
_DATA_SET = "metrics_mode"
_REBUILD = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class PublishedCheckpoint:
    """Content of a checkpoint.

    Attributes:
        tensors: parameters under their published names, without what wrappers put before them
            (``module.``, ``model.``, ``_orig_mod.``).
        options: options of the trainer by name; empty if the file has none. From a Lightning
            checkpoint only ``metrics_mode``.
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
    a bare state dict, safetensors, and checkpoints of Lightning.

    Raises:
        CheckpointError: the file is missing, is not a checkpoint, refers to code and is not one of
            Lightning, or holds anything but plain tensors of finite numbers, each under one name.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        loaded = load_plain(path)
    except CheckpointError:
        lightning = _load_lightning(path)
        if lightning is None:
            raise
        loaded = lightning
    inner = next((key for key in _WEIGHTS if isinstance(loaded.get(key), Mapping)), None)
    state = loaded if inner is None else loaded[inner]
    tensors = _tensors(path, unwrapped(path, state, lightning=_LIGHTNING in loaded))
    options: Any = {}
    if inner is not None:
        options = next((loaded[key] for key in _OPTIONS if key in loaded), {})
    lighthouse = isinstance(options, OrderedDict)
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    if not isinstance(options, Mapping):
        kind = type(options).__name__
        raise CheckpointError(f"{path}: its options are a {kind}, expected names with values")
    saved = loaded.get(_SAVED)
    if inner is not None and isinstance(saved, Mapping) and isinstance(saved.get(_DATA_SET), str):
        options = {**options, _DATA_SET: saved[_DATA_SET]}
    return PublishedCheckpoint(tensors, dict(options), lighthouse)


def load_plain(path: Path) -> Mapping[str, Any]:
    """Load a checkpoint or safetensors file as tensors and plain values only.

    Raises:
        CheckpointError: it cannot be read, refers to code, or does not hold a mapping.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)  # type: ignore[no-any-return]
        require_no_zip_bomb(path)
        with torch.serialization.safe_globals(_HARMLESS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can raise any exception.
    except Exception as error:
        raise CheckpointError(f"{path}: {_reason(path, error)}") from None
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, expected a state dict")
    return loaded


def _reason(path: Path, error: Exception) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named is None:
        found = None if isinstance(error, OSError) else stand_in(path)
        kind = f" ({type(error).__name__})" if found is None else f": it is {found}"
        return f"cannot be read as a checkpoint{kind}"
    return (
        f"names {named[1]}, which is no tensor and none of the plain types that checkpoints need; "
        "reading on could run code, so the file is refused"
    )


def unwrapped(path: Path, state: Mapping[str, Any], *, lightning: bool = False) -> dict[str, Any]:
    """A state dict without what wrappers of the model put before its names.

    Args:
        path: of the file, for the error.
        state: tensors by name.
        lightning: names without ``model.`` are of losses and metrics, and left out.

    Raises:
        CheckpointError: something else than a text names a tensor, or two names become one.
    """
    for name in state:
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: {name!r} is no name of a tensor")
    names = {name: _bare(name) for name in state if name != _AVERAGED}
    if lightning:
        own = {name: bare for name, bare in names.items() if bare.startswith(_MODEL)}
        names = own or names
    while names and all(bare.startswith(_MODEL) for bare in names.values()):
        names = {name: _bare(bare.removeprefix(_MODEL)) for name, bare in names.items()}
    first: dict[str, str] = {}
    for name, bare in names.items():
        if first.setdefault(bare, name) != name:
            raise CheckpointError(f"{path}: has {bare} twice, as {first[bare]} and as {name}")
    return {bare: state[name] for name, bare in names.items()}


def _bare(name: str) -> str:
    return _PARALLEL.sub("", _WRAPPED.sub("", name))


class _StandIn:
    """An object of a class that is not imported, or the result of a function that is not called.

    Attributes:
        path: module and name of the class or function.
        args: arguments of the call. Whatever else a file does to the object has no effect.
    """

    path: ClassVar[str] = "the result of a call"
    args: tuple[Any, ...] = ()

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __call__(self, *_: Any) -> _StandIn:
        return _StandIn()

    def _ignore(self, *_: Any) -> None:
        pass

    # What an unpickler calls to fill an object.
    __setstate__ = __setitem__ = append = extend = add = _ignore


class _Names(dict[Any, Any]):
    """Takes the place of ``OrderedDict``, without the attributes that a file may give to one."""

    __slots__ = ()

    def __setstate__(self, _: object) -> None:
        pass


class _InertUnpickler(pickle._Unpickler):
    """Builds plain containers and stand-ins; every import of a pickle goes through `find_class`.

    The class in Python keeps its memo in a dict; the one in C would allocate any index at once.
    """

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("collections", "OrderedDict"):
            return _Names
        return type("_StandIn", (_StandIn,), {"path": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        return pid  # names the record of a storage, see `_tensor`


def _load_lightning(path: Path) -> dict[str, Any] | None:
    """Tensors and saved options of a Lightning checkpoint; None for other files.

    Raises:
        CheckpointError: a tensor of the model cannot be built.
    """
    try:
        require_no_zip_bomb(path)
        with ZipFile(path) as file:
            root = file.namelist()[0].split("/")[0]
            record = f"{root}/data.pkl"
            if file.getinfo(record).file_size > _MOST_BYTES:
                return None
            loaded = _InertUnpickler(io.BytesIO(file.read(record))).load()
    # A damaged file can raise any exception.
    except Exception:
        return None
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state:
        return None
    lightning = _LIGHTNING in loaded
    if not lightning and not all(_bare(str(name)).startswith(_MODEL) for name in state):
        return None
    own = unwrapped(path, state, lightning=lightning)
    with ZipFile(path) as file:

        @cache
        def storage(record: str) -> bytearray:
            return bytearray(file.read(f"{root}/data/{record}"))

        tensors = {name: _tensor(path, storage, name, value) for name, value in own.items()}
    return {"state_dict": tensors, _SAVED: loaded.get(_SAVED)}


def _tensor(path: Path, read: Callable[[str], bytearray], name: object, value: Any) -> Any:
    """The tensor of a stand-in: part of a storage in the zip archive. Other values as they are."""
    if not isinstance(value, _StandIn):
        return value
    try:
        while value.path == _PARAMETER:
            value = value.args[0]
        if value.path != _REBUILD:
            raise CheckpointError(f"{path}: {name!r} is {value.path!r}, expected a tensor")
        (_, storage, key, *_), offset, shape, strides, *_ = value.args
        if storage.path not in _STORAGES:
            raise CheckpointError(f"{path}: {name} is of {storage.path!r}; expected real numbers")
        flat = torch.frombuffer(read(key), dtype=_STORAGES[storage.path])
        return flat.as_strided(shape, strides, offset)
    except CheckpointError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise CheckpointError(f"{path}: {name!r} cannot be read as a tensor ({kind})") from None


def _tensors(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{path}: {name!r} is a {kind}, expected a tensor")
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise CheckpointError(f"{path}: {name} is of {kind}; expected plain real numbers")
        tensors[name] = tensor
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor")
    require_own_numbers(path, tensors)
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise CheckpointError(f"{path}: {name} holds NaN, infinity or what is that in float32")
    return tensors


def require_own_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors are not larger than what the file holds.

    Repeated numbers (a stride of 0) and tensors of common numbers could claim any size.

    Raises:
        CheckpointError: one of them is no plain tensor or larger than its storage, or all together
            are several times as large as their storages.
    """
    held: dict[int, int] = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise CheckpointError(f"{path}: {name} is of {kind}; expected plain numbers")
        storage = tensor.untyped_storage()
        if tensor.nbytes > storage.nbytes():
            count = storage.nbytes() // tensor.element_size()
            rule = f"{name} is {tuple(tensor.shape)}, and its storage has {count} numbers"
            raise CheckpointError(f"{path}: {rule}")
        held[storage.data_ptr()] = storage.nbytes()
    claimed, there = sum(tensor.nbytes for tensor in tensors.values()), sum(held.values())
    if claimed > _MOST_SHARED * there:
        raise CheckpointError(f"{path}: its tensors are {claimed} bytes, and it holds {there}")


def separated(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous, and none with the storage of another, as safetensors wants."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        own = tensor.contiguous()
        if own.untyped_storage().data_ptr() in seen or own.untyped_storage().nbytes() > own.nbytes:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        found[name] = own
    return found
