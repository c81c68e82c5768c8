"""Finished pieces of an extraction: what a killed run leaves for the next one.

A piece is the rows of one video, or of some texts. The folder lies outside the feature store,
because DVC empties a stage's outputs before it runs the stage again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrmodel.features.index import Entry
from mrmodel.features.store import Half
from mrmodel.files import atomic_path, write_json

log = logging.getLogger(__name__)

_PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class Piece:
    """Entries in key order and their rows, one entry's after the other's."""

    entries: tuple[Entry, ...]
    rows: Half


class PieceFolder:
    """Pieces on disk, each found by its name; the note beside the rows says that they are whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, plan: dict[str, Any]) -> None:
        """Begin or continue work; pieces that were made under another plan are removed."""
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

    def save(self, name: str, piece: Piece, source: dict[str, Any]) -> None:
        """Keep a piece; `source` identifies what it was made of."""
        rows_path, note_path = self._paths(name)
        with atomic_path(rows_path) as temporary, temporary.open("wb") as file:
            np.save(file, piece.rows)
        entries = [asdict(entry) for entry in piece.entries]
        write_json(note_path, {"name": name, "source": source, "entries": entries})

    def has(self, name: str, source: dict[str, Any]) -> bool:
        """Whether a piece is there and was made of the same source."""
        note = _read_json(self._paths(name)[1])
        return note is not None and note["name"] == name and note["source"] == source

    def load(self, name: str) -> Piece:
        """A piece that `has` found."""
        rows_path, note_path = self._paths(name)
        note = json.loads(note_path.read_text(encoding="utf-8"))
        rows: Half = np.load(rows_path)
        return Piece(tuple(Entry(**entry) for entry in note["entries"]), rows)

    def _paths(self, name: str) -> tuple[Path, Path]:
        # Names are ids of other people's videos, which need not be good file names.
        stem = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        folder = self.folder / stem[:2]
        return folder / f"{stem}.npy", folder / f"{stem}.json"


def _read_json(path: Path) -> Any:
    """The value in a file; None where there is no file or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
