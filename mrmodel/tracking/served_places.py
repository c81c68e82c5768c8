"""The folders and buckets that a served model reads: those that its operator names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mrmodel.addresses import shown
from mrmodel.errors import ConfigError, StorageError
from mrmodel.storage.base import check_key

PLACES_VARIABLE = "MRMODEL_SERVE_FROM"
S3 = "s3://"


@dataclass(frozen=True, slots=True)
class ServedPlaces:
    """What requests may name. Clients choose the names, so none is looked at outside.

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
