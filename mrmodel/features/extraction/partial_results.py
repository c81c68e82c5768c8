"""Partial results of an extraction, from which a later run resumes.

A partial result is the rows of one video, or of some texts. The folder lies outside the feature
store, because DVC removes a stage's outputs before it reruns the stage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrmodel.features.index import IndexEntry
from mrmodel.features.store import Half
from mrmodel.files import atomic_path, sha256_of, write_json

log = logging.getLogger(__name__)

_PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """Entries in key order, and their rows, concatenated."""

    entries: tuple[IndexEntry, ...]
    rows: Half


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a video gave no rows.

    Attributes:
        reason: readable message.
        lasting: permanent: the file itself is the cause, so a retry would fail as well.
    """

    reason: str
    lasting: bool


@dataclass(frozen=True, slots=True)
class VideoNote:
    """Metadata of a partial result.

    Attributes:
        name: of the job.
        source: size (``bytes``) and modification time (``mtime_ns``) of the video; empty for
            texts.
        sha256: of the video; empty for texts.
        entries: see `VideoFeatures`; empty for a failure.
        failure: set when the job gave no rows and is not to be retried.
    """

    name: str
    source: dict[str, int]
    sha256: str = ""
    entries: tuple[IndexEntry, ...] = ()
    failure: Failure | None = None


class PartialResults:
    """Partial results on disk by job name; the note, written last, marks rows as complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, plan: Mapping[str, Any]) -> None:
        """Start or resume; partial results made under another plan are removed."""
        path = self.folder / _PLAN_FILE
        if path.exists() and _read_json(path) == plan:
            return
        if self.folder.exists():
            log.info("%s: left by an extraction with other settings, starting anew", self.folder)
            self.remove()
        write_json(path, plan)

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder)

    def save(
        self, name: str, features: VideoFeatures, source: dict[str, int], sha256: str = ""
    ) -> None:
        """Store a partial result; `source` and `sha256` identify its input."""
        with atomic_path(self.rows_path(name)) as temporary, temporary.open("wb") as file:
            np.save(file, features.rows)
        self._write(VideoNote(name, source, sha256, features.entries))

    def save_failure(
        self, name: str, failure: Failure, source: dict[str, int], sha256: str
    ) -> None:
        """Record that a job failed, so that it is not retried."""
        self._write(VideoNote(name, source, sha256, failure=failure))

    def forget(self, name: str) -> None:
        """Drop the result of a job, so that it runs again."""
        self._note_path(name).unlink(missing_ok=True)

    def find(self, name: str, source: dict[str, int], path: Path | None = None) -> VideoNote | None:
        """The note of a stored result that was made from the same source.

        A clone or a check-out changes a file's modification time. With `path`, such a file is
        recognised by size and SHA-256, and its new time is stored, so that it is hashed only once.
        """
        note = self._read(name)
        if note is None or note.source == source:
            return note
        moved = path is not None and note.sha256 and note.source["bytes"] == source.get("bytes")
        if not moved or path is None or sha256_of(path) != note.sha256:
            return None
        note = replace(note, source=source)
        self._write(note)
        return note

    def load(self, name: str) -> VideoFeatures:
        """The partial result of a note from `find` that is not a failure."""
        note = self._read(name)
        assert note is not None
        rows: Half = np.load(self.rows_path(name))
        return VideoFeatures(note.entries, rows)

    def rows_path(self, name: str) -> Path:
        """The .npy file of a partial result."""
        return self._note_path(name).with_suffix(".npy")

    def _note_path(self, name: str) -> Path:
        stem = file_stem(name)
        return self.folder / stem[:2] / f"{stem}.json"

    def _write(self, note: VideoNote) -> None:
        write_json(self._note_path(note.name), asdict(note))

    def _read(self, name: str) -> VideoNote | None:
        raw = _read_json(self._note_path(name))
        if raw is None or raw["name"] != name:
            return None
        entries = tuple(IndexEntry(**entry) for entry in raw.pop("entries"))
        failure = raw.pop("failure")
        return VideoNote(**raw, entries=entries, failure=Failure(**failure) if failure else None)


def file_stem(name: str) -> str:
    """A safe file name for a job: ids of external videos may not be valid file names."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def _read_json(path: Path) -> Any:
    """The parsed file; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
