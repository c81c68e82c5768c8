"""The files of a published archive by id."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mrmodel.errors import FeatureError
from mrmodel.features.importers.layouts import ImportedStream
from mrmodel.features.importers.readers import (
    SUFFIXES,
    Array,
    Place,
    UnusableFile,
    names_in_hdf5,
    read_array,
)
from mrmodel.features.keys import composed

log = logging.getLogger(__name__)

_HDF5 = (".hdf5", ".h5")
_CAMERA = re.compile(r"-cam-\d+$")
# A frame of a video, not a row of features: (frames, height, width, channels) of bytes.
_FRAME_AXES = 4


@dataclass(slots=True)
class Contents:
    """What a stream's folders hold.

    Attributes:
        places: id -> its files, one per part of the stream.
        repeated: id -> a surplus file of it.
        unknown: files whose id is not wanted.
        normalised: the rows were L2-normalised when they were written.
    """

    places: dict[str, list[Place | None]] = field(default_factory=dict)
    repeated: dict[str, Place] = field(default_factory=dict)
    unknown: list[Place] = field(default_factory=list)
    normalised: bool = False


def find_folder(stream: ImportedStream, source: Path) -> Path | None:
    """The first of a stream's folders that is in the archive."""
    return next(iter(_present(stream, source)), None)


def _present(stream: ImportedStream, source: Path) -> list[Path]:
    return [path for folder in stream.folders if (path := source / folder).exists()]


def list_contents(stream: ImportedStream, source: Path, known: Collection[str]) -> Contents:
    """The files of a stream by id; `_candidates` derives the id from the file name.

    Args:
        stream: see `ImportedStream`.
        source: the unpacked archive.
        known: ids of videos or queries that are wanted.

    Raises:
        FeatureError: the folder is missing or cannot be read.
    """
    present = _present(stream, source)
    if not present:
        raise FeatureError(f"{source}: no {' or '.join(stream.folders)} for {stream.name}")
    folder, *others = present
    if others:
        unread = ", ".join(map(str, others))
        log.warning("%s: read from %s, not from %s", stream.name, folder, unread)
    contents = Contents(normalised=folder.suffix in _HDF5)
    twins = {composed(name): name for name in known}
    more = [source / name for name in stream.more if (source / name).is_dir()]
    for place, name in (entry for path in (folder, *more) for entry in _entries(path)):
        _file(contents, stream, place, name, known, twins)
    return contents


def read_features(stream: ImportedStream, places: list[Place | None]) -> Array:
    """The (n, dim) rows of one id, as stored in the files.

    Raises:
        UnusableFile: see `_check`; ``unreadable``, ``no_array``, ``missing_part``.
    """
    rows = []
    for ending, place in zip(stream.parts, places, strict=True):
        if place is None:
            raise UnusableFile("missing_part", f"there is no file that ends with {ending}")
        array = read_array(place, stream.arrays)
        rows.append(_check(_tokens(array, stream.dim) if stream.modality == "text" else array))
    shortest = min(len(part) for part in rows)
    # RGB and flow are sampled differently at the end of a video.
    joined = rows[0] if len(rows) == 1 else np.concatenate([r[:shortest] for r in rows], axis=1)
    if joined.shape[1] != stream.dim:
        rule = f"rows of {joined.shape[1]} channels, {stream.name} has {stream.dim}"
        raise UnusableFile("dim_mismatch", rule)
    return joined


def _tokens(array: Array, dim: int) -> Array:
    """(n, dim) of a sentence vector, (dim,), or of a batch of one text, (1, n, dim)."""
    if array.ndim == 1 and len(array) == dim:
        return array[None]
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def _check(array: Array) -> Array:
    if array.ndim == _FRAME_AXES and array.dtype == np.uint8:
        rule = f"{array.shape} bytes are frames of a video, not features"
        raise UnusableFile("frame_dump", rule)
    if array.ndim != 2 or array.dtype.kind != "f":
        rule = f"is {array.dtype} {array.shape}, expected numbers of shape (rows, channels)"
        raise UnusableFile("wrong_shape", rule)
    if len(array) == 0:
        raise UnusableFile("zero_rows", "holds no row")
    return array


def _entries(path: Path) -> Iterator[tuple[Place, str]]:
    """Files in a folder with their names; a sub-folder's name is the first part of an id."""
    if path.suffix in _HDF5:
        for name in names_in_hdf5(path):
            yield Place(path, name), name
        return
    for entry in os.scandir(path):
        if entry.is_dir():
            for inner in os.scandir(entry.path):
                yield from _named(inner, f"{entry.name}_")
        else:
            yield from _named(entry, "")


def _named(entry: os.DirEntry[str], prefix: str) -> Iterator[tuple[Place, str]]:
    stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 - a Path for each file is slow
    if suffix in SUFFIXES:
        yield Place(Path(entry.path)), prefix + stem


def _file(
    contents: Contents,
    stream: ImportedStream,
    place: Place,
    name: str,
    known: Collection[str],
    twins: Mapping[str, str],
) -> None:
    for number, ending in enumerate(stream.parts):
        if not name.endswith(ending):
            continue
        keys = list(_candidates(stream, name, ending))
        found = next((key for key in keys if key in known), None)
        if found is None:
            found = next((twins[one] for one in map(composed, keys) if one in twins), None)
        if found is None:
            continue
        places = contents.places.setdefault(found, [None] * len(stream.parts))
        first = places[number]
        if first is None:
            places[number] = place
        else:
            contents.repeated.setdefault(found, max(place, first, key=str))
        return
    contents.unknown.append(place)


def _candidates(stream: ImportedStream, name: str, ending: str) -> Iterator[str]:
    """Ids that a file name may stand for: the id, ``qid<id>``, or the id of a TACoS camera."""
    key = name.removesuffix(ending)
    yield key
    if stream.modality == "text":
        yield key.removeprefix("qid")
    else:
        yield _CAMERA.sub("", key)
