"""Clip features for a served model: from a video file, an S3 object, or feature stores.

Only in the places that `ServedPlaces` allows. What is not there and what is not allowed gives one
and the same error, so that clients cannot find out what a machine holds. S3 files are copied into a
temporary folder, so that all further code reads local files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mrmodel.addresses import shown
from mrmodel.errors import ConfigError, DataError, FeatureError, FeatureMismatch, StorageError
from mrmodel.features.extraction.encode import report_of
from mrmodel.features.index import read_index
from mrmodel.features.keys import split_segment
from mrmodel.features.manifest import MANIFEST_FILE
from mrmodel.features.store import FeatureStore, MemoryStore
from mrmodel.files import digest_of
from mrmodel.predict.predictor import Predictor, SearchableVideo
from mrmodel.storage import open_store
from mrmodel.storage.base import check_key
from mrmodel.train.checkpoint import ModelConfig
from mrmodel.video.frames import DecodeReport
from mrmodel.video.remote import is_pointer, read_video_pointer

PLACES_VARIABLE = "MRMODEL_SERVE_FROM"
S3 = "s3://"


@dataclass(frozen=True, slots=True)
class ServedPlaces:
    """What requests may name: folders and buckets that the operator of a served model names.

    Clients choose the names, so none is looked at outside.

    Attributes:
        folders: absolute; what lies below them, and links from there to there.
        addresses: bucket, and parts of the prefix if there is one.
    """

    folders: tuple[Path, ...] = ()
    addresses: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> ServedPlaces:
        """Read `PLACES_VARIABLE`: folders and S3 addresses, separated by commas; unset: none.

        Raises:
            ConfigError: one is neither.
        """
        folders, addresses = [], []
        for place in map(str.strip, environ.get(PLACES_VARIABLE, "").split(",")):
            parts = _parts(place) if place.startswith(S3) else None
            if parts is not None:
                addresses.append(parts)
            elif place and _is_plain(Path(place)):
                folders.append(Path(place))
            elif place:
                rule = "expected absolute folders and addresses s3://bucket/prefix, with commas"
                raise ConfigError(PLACES_VARIABLE, shown(place), f"{rule} between them")
        return cls(tuple(folders), tuple(addresses))

    def path(self, given: str) -> Path | None:
        """A file or folder in the places; None if it is not there, or somewhere else."""
        path = Path(given).absolute()
        if not _is_plain(path) or not self._holds(path, self.folders):
            return None
        try:
            there = path.resolve(strict=True)
        except (
            OSError,
            ValueError,
            RuntimeError,
        ):  # ValueError: a null byte; RuntimeError: a loop.
            return None
        return path if self._holds(there, [folder.resolve() for folder in self.folders]) else None

    def has_object(self, url: str) -> bool:
        """Whether an object, or the folder of some, is in the places by its address."""
        parts = _parts(url)
        return parts is not None and any(parts[: len(one)] == one for one in self.addresses)

    @staticmethod
    def _holds(path: Path, folders: Iterable[Path]) -> bool:
        return any(path.is_relative_to(folder) for folder in folders)


def _is_plain(path: Path) -> bool:
    return path.is_absolute() and ".." not in path.parts


def _parts(url: str) -> tuple[str, ...] | None:
    """Bucket and parts of the key; None for what no store reads, such as ``..``."""
    path = url.removeprefix(S3).rstrip("/")
    try:
        check_key(S3, path)
    except StorageError:
        return None
    parts = tuple(path.split("/"))
    return None if "?" in path or set(parts[0]) & set("@:") else parts


# `video` of a request for the example video inside every logged model.
EXAMPLE = "example:"
# Of a name, in an error.
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Source:
    """Source of one video's features: `video`, or `features` and `vid`.

    Attributes:
        video: path or ``s3://`` URL of a video file, or `EXAMPLE`.
        features: folder or ``s3://`` URL that holds one feature store per stream.
        vid: key of the video in these stores, or ``<key>_<start>_<end>`` for a segment of it.
    """

    video: str | None = None
    features: str | None = None
    vid: str | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, Any], number: int) -> Source:
        """The source in request row `number` (from 1); empty strings count as absent.

        Raises:
            DataError: it has none, or two.
        """
        given = {name: row.get(name) or None for name in ("video", "features", "vid")}
        named = {name for name, value in given.items() if value is not None}
        texts = all(isinstance(given[name], str) for name in named)
        if not texts or named not in ({"video"}, {"features", "vid"}):
            raise DataError(f"row {number}: give `video`, or `features` and `vid`; found {given}")
        return cls(**given)


class VideoRows:
    """Loads the features of sources for one model.

    Args:
        predictor: the model with its encoders.
        example: the video for `EXAMPLE`.

    Raises:
        ConfigError: `PLACES_VARIABLE` does not name folders and S3 addresses.
    """

    def __init__(self, predictor: Predictor, example: Path) -> None:
        self._predictor, self._example = predictor, example
        self._places = ServedPlaces.from_environment(os.environ)
        # S3 feature stores, kept while the process lives; a video is kept for one call only.
        self._stores = tempfile.TemporaryDirectory(prefix="mrmodel-features-")

    def load(self, source: Source) -> SearchableVideo:
        """The features of a source, for `Predictor.search`.

        Raises:
            DataError: there is no such video or folder, or it is in none of the served places.
            VideoError: no frames can be decoded.
            FeatureError: a feature store is missing or damaged, or has no such video.
            FeatureMismatch: it was made by another encoder than the training features.
            StorageError: S3 is unreachable.
        """
        given = source.features or source.video or EXAMPLE
        with self._found(source, given) as found:
            if found is None:
                rule = f"is not there, or in no place that {PLACES_VARIABLE} of the server names"
                raise DataError(f"{shown(given)[:_SHOWN]!r} {rule}")
            if source.vid is not None:
                return stored_video(found, source.vid, self._predictor.config)
            return self._predictor.encode(found)

    @contextmanager
    def _found(self, source: Source, given: str) -> Iterator[Path | None]:
        """The video or the folder of the feature stores, while it is read; None: see `load`."""
        if source.features is not None:
            yield self._local_stores(given)
        elif given == EXAMPLE:
            yield self._example
        elif given.startswith(S3):
            with tempfile.TemporaryDirectory(prefix="mrmodel-video-") as folder:
                yield self._downloaded(given, Path(folder))
        else:
            path = self._places.path(given)
            yield path if path is not None and self._is_video(path) else None

    def _is_video(self, path: Path) -> bool:
        """Whether it is a file; if it points to an object, one that may be read."""
        if is_pointer(path) and path.is_file():
            return self._places.has_object(read_video_pointer(path).url)
        return path.is_file()

    def _downloaded(self, url: str, folder: Path) -> Path | None:
        place, _, name = url.rpartition("/")
        if place + "/" == S3 or not self._places.has_object(url):
            return None
        store, path = open_store(place), folder / name
        if not store.exists(name):
            return None
        store.download(name, path)
        return path if self._is_video(path) else None

    def _local_stores(self, features: str) -> Path | None:
        """The folder of the feature stores; S3 stores are copied when their manifests change."""
        if not features.startswith(S3):
            path = self._places.path(features)
            return path if path is not None and path.is_dir() else None
        if not self._places.has_object(features):
            return None
        store = open_store(features)
        names = [stream.name for stream in self._predictor.config.video_streams]
        manifests = {name: store.get(f"{name}/{MANIFEST_FILE}") for name in names}
        missing = [name for name, found in manifests.items() if found is None]
        if len(missing) == len(names):
            return None
        if missing:
            raise FeatureError(f"{features}: no feature store {missing[0]!r} there")
        tags = {name: found.tag for name, found in manifests.items() if found is not None}
        folder = Path(self._stores.name) / digest_of([features, tags])[:16]
        for key in [key for name in names for key in store.keys(f"{name}/")]:
            if not (folder / key).exists():
                store.download(key, folder / key)
        return folder


def stored_video(features: Path, vid: str, config: ModelConfig) -> SearchableVideo:
    """A video whose features were extracted before.

    Args:
        features: holds one feature store per stream, such as ``features/sample``.
        vid: key of the video, or ``<key>_<start>_<end>`` for a segment of it.
        config: of the model that reads the features.

    Raises:
        FeatureError: a store is missing or damaged, or has no such video.
        FeatureMismatch: a store was made by another encoder than the training features.
    """
    stores = [FeatureStore(features / stream.name) for stream in config.video_streams]
    for store, stream in zip(stores, config.video_streams, strict=True):
        found = digest_of(store.info.fingerprint)
        if found != stream.fingerprint:
            raise FeatureMismatch(
                f"{store.folder}: its rows are not those that the model was trained with "
                f"(fingerprint {found[:12]}, expected {str(stream.fingerprint)[:12]})"
            )
    rows = [store.gather([vid])[0][0] for store in stores]
    streams = tuple(
        MemoryStore(store.name, {vid: values}, config.clip_len_s)
        for store, values in zip(stores, rows, strict=True)
    )
    report = _report(stores, vid)
    duration_s = report.start_s + report.duration_s
    n_clips = min(map(len, rows))
    return SearchableVideo(
        vid, duration_s, report.start_s, n_clips, streams, report, config.video_streams
    )


def _report(stores: Sequence[FeatureStore], vid: str) -> DecodeReport:
    """Decoding report from the extraction; for a segment, with the segment's length."""
    entries = {row.entry.key: row.entry for row in read_index(stores[0].folder)}
    segment, start_s = split_segment(vid), float(stores[0].resolve([vid]).start_s[0])
    if vid in entries or segment is None:
        return replace(report_of(entries[vid]), start_s=start_s)
    entry = entries[segment.base]
    end_s = min(segment.end_s, entry.start_s + entry.duration_s)
    duration_s = end_s - segment.start_s - start_s
    return replace(report_of(entry), duration_s=duration_s, start_s=start_s)
