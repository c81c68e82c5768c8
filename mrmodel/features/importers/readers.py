"""Reads arrays and word vectors from files of other programs, without executing code in them."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import FeatureError
from mrmodel.files import require_no_zip_bomb, stand_in
from mrmodel.lines import byte_lines

Array = NDArray[Any]

SUFFIXES = (".npz", ".npy", ".pt", ".hdf5", ".h5")
# Of one item in memory. A day of video with 4096 channels per two seconds is a third of it.
MOST_BYTES = 1 << 31
# No file is smaller than its rows by more: the limit of deflate, the strongest compression here.
_MOST_PACKED = 1032
# Characters of a reason, which goes into the store and its report.
_LONGEST = 200
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
        UnusableFile: ``unreadable`` (damaged, or a format that needs code), ``no_array``,
            ``too_large`` (for this machine, or beyond `MOST_BYTES`).
    """
    if not place.path.is_file():
        raise UnusableFile("unreadable", "is no regular file")
    try:
        if place.inner is not None:
            return _from_hdf5(place)
        if place.path.suffix == ".pt":
            return _from_torch(place.path, names)
        return _from_numpy(place.path, names)
    except FeatureError:
        raise
    except MemoryError:
        raise UnusableFile("too_large", "there is not enough memory to read it") from None
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
    # NumPy repeats a header that it cannot read, of up to 10,000 characters.
    return f"{error}".strip().partition("\n")[0][:_LONGEST] or type(error).__name__


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
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if not is_zip:
            _require_npy(file, path.stat().st_size)
            file.seek(0)
        found = np.load(file, allow_pickle=False)
        if not is_zip:
            array: Array = found
            return array
        with found:
            name = _first(names, found)
            members = {info.filename: info for info in found.zip.infolist()}
            member = members.get(name) or members[f"{name}.npy"]
            if member.file_size > _MOST_PACKED * (member.compress_size + 1):
                raise UnusableFile("unreadable", "its sizes contradict each other")
            with found.zip.open(member) as inner:
                _require_npy(inner, member.file_size)
            chosen: Array = found[name]
    return chosen


def _require_npy(file: Any, size: int) -> None:
    """Check the header of an array of NumPy in a file of `size` bytes."""
    header = np.lib.format
    old = header.read_magic(file) == (1, 0)
    read = header.read_array_header_1_0 if old else header.read_array_header_2_0
    shape, _, dtype = read(file)
    if not dtype.hasobject:  # which NumPy itself refuses
        _require_room(shape, dtype, size)


def _require_room(shape: tuple[int, ...], dtype: Any, most: int) -> None:
    """Check that an array is not larger than `most` bytes, which the file may hold."""
    declared = math.prod(shape) * int(dtype.itemsize)
    if declared > most:
        rule = f"declares {dtype} {shape}, {declared} bytes, and cannot hold more than {most}"
        raise UnusableFile("unreadable", rule)
    if declared > MOST_BYTES:
        rule = f"{dtype} {shape} are {declared} bytes, of {MOST_BYTES} that an item may have"
        raise UnusableFile("too_large", rule)


def _from_torch(path: Path, names: Sequence[str]) -> Array:
    import torch  # lazy: takes seconds, and few archives need it

    require_no_zip_bomb(path)
    value = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(value, dict):
        value = value[_first(names, value)]
    if not isinstance(value, torch.Tensor):
        raise UnusableFile("no_array", f"holds {type(value).__name__}, no tensor")
    # Repeated numbers (a stride of 0) and zeros that are left out could claim any size.
    plain = value.layout == torch.strided
    _require_room(
        tuple(value.shape), value.dtype, value.untyped_storage().nbytes() if plain else MOST_BYTES
    )
    if value.is_quantized:
        value = value.dequantize()
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.is_floating_point() and str(value.dtype).removeprefix("torch.") not in _OF_NUMPY:
        value = value.float()
    array: Array = value.numpy(force=True)  # also of a tensor that requires gradients
    return array


def _from_hdf5(place: Place) -> Array:
    h5py = _h5py()
    with h5py.File(place.path, "r") as file:
        if not isinstance(file.get(place.inner, getlink=True), h5py.HardLink):
            raise UnusableFile("unreadable", "is a link; rows of other files are not read")
        found = file[place.inner]
        if not isinstance(found, h5py.Dataset):
            raise UnusableFile("no_array", f"is a {type(found).__name__}, no data set")
        if found.external or found.is_virtual:
            raise UnusableFile("unreadable", "lies in another file, which is not read")
        if found.dtype.kind not in "fiub":
            raise UnusableFile("wrong_shape", f"is {found.dtype}, expected numbers")
        # Rows that were never written take no room, and would be read as zeros.
        # Many chunks may lie at one place, so that they are larger than the file.
        stored = min(found.id.get_storage_size(), place.path.stat().st_size)
        _require_room(found.shape or (), found.dtype, _MOST_PACKED * stored)
        _require_room(found.chunks or (), found.dtype, MOST_BYTES)
        array: Array = found[()]
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


Floats = NDArray[np.float32]


class WordVectors:
    """GloVe vectors of the words in some sentences, looked up as in the published VGG recipes.

    Words are split at white space and lower-cased; a word that is not in the file is a row of
    zeros. So ``light.`` at the end of a sentence is unknown, as in the published recipes.
    """

    def __init__(self, dim: int, vectors: dict[str, Floats]) -> None:
        self.dim, self._vectors = dim, vectors

    @classmethod
    def read(cls, path: Path, dim: int, sentences: Iterable[str]) -> WordVectors:
        """Read a text file of one word and `dim` numbers per line; keeps only words of `sentences`.

        Raises:
            DataError: the file cannot be read.
            FeatureError: a line has other values, or the file holds none of the words.
        """
        words = {word.encode(): word for sentence in sentences for word in _words(sentence)}
        vectors: dict[str, Floats] = {}
        for line, text in enumerate(byte_lines(path), start=1):
            letters, _, rest = text.partition(b" ")
            word = words.get(letters)
            if word is None:
                continue
            try:
                vector = np.array(rest.split(), dtype=np.float32)
            except ValueError as error:
                raise FeatureError(f"{path}:{line}: no word vector: {error}") from None
            if len(vector) != dim:
                rule = f"{word!r} has {len(vector)} values, expected {dim}"
                raise FeatureError(f"{path}:{line}: {rule}")
            vectors[word] = vector
        if not vectors:
            raise FeatureError(f"{path}: holds none of the {len(words)} words of the queries")
        return cls(dim, vectors)

    def rows(self, sentence: str) -> Floats:
        """(words, dim) vectors of a sentence, in its order."""
        nothing = np.zeros(self.dim, np.float32)
        return np.stack([self._vectors.get(word, nothing) for word in _words(sentence)])


def _words(sentence: str) -> list[str]:
    return sentence.lower().split()
