"""Reads arrays from files of other programs, without executing code in them.

Uncompressed ``.npz`` files are read without the zip library: archives hold tens of thousands of
them, and opening one takes longer than reading it.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import FeatureError

Array = NDArray[Any]

SUFFIXES = (".npz", ".npy", ".pt", ".hdf5", ".h5")

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_LOCAL_MAGIC, _DIRECTORY_MAGIC = b"PK\x03\x04", b"PK\x01\x02"
_NPY_MAGIC = b"\x93NUMPY"
_ZIP64 = 0xFFFFFFFF
# Errors that the readers raise on damaged files.
_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    NotImplementedError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class UnusableFile(FeatureError):
    """A file gives no rows; `code` is a stable identifier such as ``zero_rows``."""

    def __init__(self, code: str, detail: str) -> None:
        self.code, self.detail = code, detail
        super().__init__(f"{code}: {detail}")


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
        content = place.path.read_bytes()
        if content.startswith(_NPY_MAGIC):
            return _from_npy(memoryview(content))
        return _from_npz(content, names)
    except _DAMAGED as error:
        raise UnusableFile("unreadable", f"{error}") from None


def names_in_hdf5(path: Path) -> list[str]:
    """The data sets of a file.

    Raises:
        FeatureError: h5py is not installed, or the file is not HDF5.
    """
    try:
        with _h5py().File(path, "r") as file:
            return list(file)
    except OSError as error:
        raise FeatureError(f"{path}: not an HDF5 file: {error}") from None


def _from_npz(content: bytes, names: Sequence[str]) -> Array:
    members = _stored_members(content)
    if members is None:
        return _from_any_zip(content, names)
    name = _first(names, members)
    data, checksum = members[name]
    if zlib.crc32(data) != checksum:
        raise UnusableFile("unreadable", f"{name}: its checksum does not fit its bytes")
    return _from_npy(data)


def _stored_members(content: bytes) -> dict[str, tuple[memoryview, int]] | None:
    """Bytes and CRC-32 of each member; None where one is compressed, or has a data descriptor."""
    members = {}
    view, start = memoryview(content), 0
    while content[start : start + 4] == _LOCAL_MAGIC:
        if start + _LOCAL.size > len(content):
            return None
        header = _LOCAL.unpack_from(content, start)
        flags, method, checksum, size = header[2], header[3], header[6], header[8]
        name_end = start + _LOCAL.size + header[9]
        first = name_end + header[10]
        if size == _ZIP64 and header[10] >= 20:
            size = struct.unpack_from("<Q", content, name_end + 4)[0]
        if method != zipfile.ZIP_STORED or flags & 8 or first + size > len(content):
            return None
        name = content[start + _LOCAL.size : name_end].decode()
        members[name.removesuffix(".npy")] = (view[first : first + size], checksum)
        start = first + size
    return members if content[start : start + 4] == _DIRECTORY_MAGIC else None


def _from_any_zip(content: bytes, names: Sequence[str]) -> Array:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        array: Array = archive[_first(names, archive)]
    return array


def _from_npy(content: memoryview) -> Array:
    major = content[6]
    length_bytes = 2 if major == 1 else 4
    length = int.from_bytes(content[8 : 8 + length_bytes], "little")
    first = 8 + length_bytes + length
    shape, fortran, dtype = _npy_header(bytes(content[:first]))
    array = np.frombuffer(content, dtype, math.prod(shape), offset=first)
    return array.reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=4096)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype; cached, because parsing is slow and files share few headers."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("holds Python objects, which are not loaded")
    return shape, fortran, dtype


def _from_torch(path: Path, names: Sequence[str]) -> Array:
    import torch  # lazy: takes seconds, and few archives need it

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise various types
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnusableFile("unreadable", first) from None
    if isinstance(value, dict):
        value = value[_first(names, value)]
    if not isinstance(value, torch.Tensor):
        raise UnusableFile("no_array", f"holds {type(value).__name__}, no tensor")
    if value.dtype == torch.bfloat16:
        value = value.float()
    array: Array = value.numpy()
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
    found = ", ".join(sorted(there))
    raise UnusableFile("no_array", f"holds {found or 'nothing'}, none of {', '.join(names)}")
