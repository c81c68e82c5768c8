"""The file that carries a shard: a tar of a manifest and the .npy files of its pieces.

Equal pieces give equal bytes. Everything in it is checked when it is read: the manifest against
its own digest, the rows against the manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from mrmodel.errors import FeatureError
from mrmodel.features.pieces import Note, Piece, PieceFolder, file_stem
from mrmodel.features.work import require_plan
from mrmodel.files import atomic_path, digest_of, sha256_of

_MANIFEST = "manifest.json"
_VERSION: Literal[1] = 1


class _Manifest(BaseModel):
    """manifest.json: `digest` is that of everything else; `rows` says name -> SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    plan: dict[str, Any]
    notes: list[Note]
    rows: dict[str, str]


@dataclass(frozen=True, slots=True)
class ShardTar:
    """An open shard: the notes of its pieces, and their rows on demand."""

    path: Path
    notes: list[Note]
    _rows: dict[str, str]
    _content: _Content

    def is_in(self, folder: PieceFolder, note: Note) -> bool:
        """Whether the folder holds the very rows of a piece already."""
        path = folder.rows_path(note.name)
        return path.exists() and sha256_of(path) == self._rows.get(note.name)

    def piece(self, note: Note) -> Piece:
        """The piece of a note that is no failure.

        Raises:
            FeatureError: its rows are missing or damaged.
        """
        content = self._content.read(_rows_name(note.name))
        if hashlib.sha256(content).hexdigest() != self._rows.get(note.name):
            raise FeatureError(f"{self.path}: damaged: the rows of {note.name!r} have changed")
        return Piece(note.entries, np.load(io.BytesIO(content)))


def write_tar(
    target: Path, plan: Mapping[str, Any], notes: list[Note], folder: PieceFolder
) -> None:
    """Pack the pieces of these notes, in their order, atomically."""
    kept = [note for note in notes if note.failure is None]
    body = {
        "version": _VERSION,
        "plan": dict(plan),
        "notes": [_without_time(note) for note in notes],
        "rows": {note.name: sha256_of(folder.rows_path(note.name)) for note in kept},
    }
    manifest = json.dumps({"digest": digest_of(body), **body}, ensure_ascii=False).encode()
    with atomic_path(target) as temporary, tarfile.open(temporary, "w") as tar:
        tar.addfile(_plain(_MANIFEST, len(manifest)), io.BytesIO(manifest))
        for note in kept:
            path = folder.rows_path(note.name)
            with path.open("rb") as file:
                tar.addfile(_plain(_rows_name(note.name), path.stat().st_size), file)


@contextmanager
def read_tar(path: Path, plan: Mapping[str, Any]) -> Iterator[ShardTar]:
    """Open what `write_tar` wrote.

    Raises:
        FeatureError: it is damaged, or its pieces were made under another plan than this.
    """
    try:
        tar = tarfile.open(path, "r:")  # noqa: SIM115 - closed below, whatever the reader does
    except (tarfile.TarError, OSError) as error:
        raise FeatureError(f"{path}: not a shard of an extraction: {error}") from error
    with tar:
        content = _Content(tar, path)
        manifest = _read_manifest(content, path)
        require_plan(str(path), manifest.plan, plan)
        yield ShardTar(path, manifest.notes, manifest.rows, content)


class _Content:
    """Members of a tar by name; `tarfile` would search its list for each."""

    def __init__(self, tar: tarfile.TarFile, path: Path) -> None:
        self._tar, self._path = tar, path
        try:
            self._members = {member.name: member for member in tar.getmembers()}
        except (tarfile.TarError, OSError) as error:
            raise FeatureError(f"{path}: damaged: {error}") from error

    def read(self, name: str) -> bytes:
        member = self._members.get(name)
        file = None if member is None else self._tar.extractfile(member)
        if file is None:
            raise FeatureError(f"{self._path}: incomplete: there is no {name}")
        try:
            return file.read()
        except (tarfile.TarError, OSError) as error:
            raise FeatureError(f"{self._path}: damaged: {name}: {error}") from error


def _read_manifest(content: _Content, path: Path) -> _Manifest:
    try:
        body = json.loads(content.read(_MANIFEST))
        if body.pop("digest") != digest_of(body):
            raise FeatureError(f"{path}: damaged: its manifest has changed")
        return _Manifest.model_validate(body)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise FeatureError(f"{path}: damaged: its manifest cannot be read: {what}") from error


def _without_time(note: Note) -> dict[str, Any]:
    """A note as JSON; the time of the file means nothing elsewhere."""
    return asdict(note) | {"source": {"bytes": note.source["bytes"]}}


def _rows_name(name: str) -> str:
    return f"rows/{file_stem(name)}.npy"


def _plain(name: str, size: int) -> tarfile.TarInfo:
    """A member without owner and time."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member
