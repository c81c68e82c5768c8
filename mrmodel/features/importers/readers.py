"""Reads arrays from files of other programs, without executing code in them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import FeatureError
from mrmodel.files import stand_in

Array = NDArray[Any]

SUFFIXES = (".npz", ".npy", ".pt", ".hdf5", ".h5")
# Real numbers of torch that NumPy has too.
_OF_NUMPY = ("float16", "float32", "float64")


class UnusableFile(FeatureError):
    """A file gives no rows; `code` is a stable identifier such as ``zero_rows``."""

    def __init__(self, code: str, detail: str) -> None:
        self.code, self.detail = code, " ".join(detail.split())
        super().__init__(f"{code}: {self.detail}")


@dataclass(frozen=True, slots=True)
class Place:
    """A file, or one data set in an HDF5 file."""

    path: Path
    inner: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.inner is None else f"{self.path}:{self.inner}"


def read_array(place: Place, names: Sequence[str]) -> Array:
    """The array at a place.

    Args:
        place: the file.
        names: names of the array, where a file holds several; the first that exists is used.

    Raises:
        UnusableFile: ``unreadable`` (damaged, or a format that needs code), ``no_array``.
    """
    try:
        if place.inner is not None:
            return _from_hdf5(place)
        if place.path.suffix == ".pt":
            return _from_torch(place.path, names)
        return _from_numpy(place.path, names)
    except FeatureError:
        raise
    # A damaged file can raise any exception.
    except Exception as error:
        raise UnusableFile("unreadable", _reason(place, error)) from None


def _reason(place: Place, error: Exception) -> str:
    found = None if isinstance(error, OSError) and error.errno else stand_in(place.path)
    if found is not None:
        return f"it is {found}"
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        return "damaged" if named is None else f"names {named[1]}; reading on could run code"
    return f"{error}".strip().partition("\n")[0] or type(error).__name__


def names_in_hdf5(path: Path) -> list[str]:
    """The data sets of a file.

    Raises:
        FeatureError: h5py is not installed, or the file is not HDF5.
    """
    try:
        with _h5py().File(path, "r") as file:
            return list(file)
    except (OSError, RuntimeError, ValueError) as error:
        raise FeatureError(f"{path}: not an HDF5 file: {error}") from None


def _from_numpy(path: Path, names: Sequence[str]) -> Array:
    found = np.load(path, allow_pickle=False)
    if not isinstance(found, np.lib.npyio.NpzFile):
        array: Array = found
        return array
    with found:
        chosen: Array = found[_first(names, found)]
    return chosen


def _from_torch(path: Path, names: Sequence[str]) -> Array:
    import torch  # lazy: takes seconds, and few archives need it

    value = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(value, dict):
        value = value[_first(names, value)]
    if not isinstance(value, torch.Tensor):
        raise UnusableFile("no_array", f"holds {type(value).__name__}, no tensor")
    if value.is_quantized:
        value = value.dequantize()
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.is_floating_point() and str(value.dtype).removeprefix("torch.") not in _OF_NUMPY:
        value = value.float()
    array: Array = value.numpy(force=True)  # also of a tensor that requires gradients
    return array


def _from_hdf5(place: Place) -> Array:
    with _h5py().File(place.path, "r") as file:
        array: Array = np.asarray(file[place.inner])
    return array


def _h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError:
        rule = "reading HDF5 files needs h5py: pip install 'mrmodel[import-h5]'"
        raise FeatureError(rule) from None
    return h5py


def _first(names: Sequence[str], there: Any) -> str:
    for name in names:
        if name in there:
            return name
    found = ", ".join(sorted(map(str, there)))
    raise UnusableFile("no_array", f"holds {found or 'nothing'}, none of {', '.join(names)}")
