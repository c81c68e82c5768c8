"""A device that computes on the CPU, and tells on who mixes its tensors with others.

No machine of the tests has a GPU, and the shape-only device does not run what reads numbers
(matching, losses). Tensors of `on_device` claim to lie on that device; inside `watched` every
operation on them runs on the CPU, as it would on a GPU, one that also reads a tensor of the CPU is
an error, waits for the device are noted, and operations are counted.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_leaves, tree_map

CLAIMED = torch.device("meta")
_MATH_ATTENTION = 0  # the kernel that is made of operations which every device has
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")  # take indices of the CPU
_COPIES = ("_to_copy", "copy_")


class DeviceTensor(Tensor):
    """A tensor whose numbers lie in `inner`, on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=CLAIMED,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, [])


def on_device(values: Any) -> Any:
    """A tensor on the device; the parameters and buffers of a module, in place."""
    if isinstance(values, Tensor):
        return DeviceTensor(values)
    for module in values.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = DeviceTensor(parameter.detach())
                module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = DeviceTensor(buffer)
    return values


@dataclass(slots=True)
class Seen:
    """What a block did: the places where it waited for the device, and its number of operations."""

    waits: list[str] = field(default_factory=list)
    operations: int = 0


@contextmanager
def watched() -> Iterator[Seen]:
    """A block that runs on the device."""
    seen = Seen()
    with _Functions(seen.waits), _Operations(seen):
        yield seen


class _Operations(TorchDispatchMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.operations += 1
        return _run(func, args, kwargs or {}, self.seen.waits)


class _Functions(TorchFunctionMode):
    """New tensors from Python numbers, which no operation makes."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        is_new = func is torch.tensor and options.get("device") == CLAIMED
        if not is_new:
            return func(*args, **options)
        del options["device"]
        self.waits.append(_place())
        with _disable_current_modes():
            return DeviceTensor(torch.tensor(*args, **options))


def _run(func: Any, args: Any, kwargs: dict[str, Any], waits: list[str]) -> Any:
    name = func.overloadpacket.__name__
    if name == "_fused_sdp_choice":
        return _MATH_ATTENTION
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    elsewhere = [t for t in tensors if not isinstance(t, DeviceTensor) and t.dim()]
    if here and elsewhere and name not in (*_INDEXING, *_COPIES):
        raise AssertionError(f"{func} mixes tensors of the device and of the CPU at {_place()}")
    target = kwargs.get("device")
    stays = bool(here) if target is None else torch.device(target) == CLAIMED
    if _waits(name, args, here, stays, kwargs):
        waits.append(_place())
    options = kwargs if target is None else kwargs | {"device": torch.device("cpu")}
    with _disable_current_modes():
        result = func(*tree_map(_inner, args), **tree_map(_inner, options))
    if not stays or name == "_local_scalar_dense":
        return result
    result = tree_map(lambda part: DeviceTensor(part) if isinstance(part, Tensor) else part, result)
    is_alias = here and name != "_to_copy"
    return return_and_correct_aliasing(func, args, kwargs, result) if is_alias else result


def _waits(
    name: str, args: Any, here: list[DeviceTensor], stays: bool, kwargs: dict[str, Any]
) -> bool:
    if name == "_to_copy":
        return bool(here) != stays and not kwargs.get("non_blocking")
    if name in _INDEXING:
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return bool(here) and name in ("_local_scalar_dense", "nonzero")


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, DeviceTensor) else value


def _place() -> str:
    """The line of the package that is running."""
    frames = [f for f in traceback.extract_stack() if "/mrmodel/" in f.filename]
    if not frames:
        return "backward"
    last = frames[-1]
    return f"{last.filename.rpartition('/mrmodel/')[2]}: {last.line}"
