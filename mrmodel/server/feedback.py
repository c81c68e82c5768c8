"""Feedback about hits: what people accepted, corrected or rejected, in a journal on disk.

The journal is a file of JSON lines to which lines are only ever appended: an entry for each verdict
and a record for each delivery of them (`feedback_delivery.deliver`). Several processes may append.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mrmodel.config.base import first_mistake
from mrmodel.errors import DataError, OutputError
from mrmodel.features.keys import normalise_query
from mrmodel.files import sync_folder
from mrmodel.lines import json_lines

# In the folder of a library.
JOURNAL = "feedback.jsonl"
_LONGEST_QUERY = 1000


class Verdict(BaseModel):
    """What somebody says about a hit; times are in a player's seconds.

    Attributes:
        query: the sentence that was searched for.
        verdict: the window is right, is elsewhere (the corrected one), or there is no such moment.
        start_s, end_s: the window that was found.
        corrected_start_s, corrected_end_s: the right window; with ``correct`` only.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    query: str = Field(min_length=1, max_length=_LONGEST_QUERY)
    verdict: Literal["accept", "correct", "reject"]
    start_s: float = Field(ge=0)
    end_s: float
    corrected_start_s: float | None = Field(default=None, ge=0)
    corrected_end_s: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.query.strip() or "\0" in self.query:
            raise ValueError("query: is empty, or holds NUL")
        corrected = (self.corrected_start_s, self.corrected_end_s)
        if (self.verdict == "correct") != all(time is not None for time in corrected):
            raise ValueError("corrected_start_s and corrected_end_s go with the verdict 'correct'")
        start_s, end_s = self.window
        if self.start_s >= self.end_s or start_s >= end_s:
            raise ValueError("a window ends after its start")
        return self

    @property
    def window(self) -> tuple[float, float]:
        """The corrected window if there is one, or else the one that was found."""
        if self.corrected_start_s is None or self.corrected_end_s is None:
            return self.start_s, self.end_s
        return self.corrected_start_s, self.corrected_end_s


class FeedbackEntry(Verdict):
    """A verdict in the journal, and the video that it is about.

    Attributes:
        id: of the entry.
        time: when it was made, UTC.
        path: absolute path of the video's file.
        name: name of the file as people know it, with its suffix.
        sha256: of the file's content.
        duration_s: how long a player shows it.
        model: which answered; empty if that is not known.
    """

    id: str
    time: datetime
    path: str
    name: str
    sha256: str
    duration_s: float = Field(gt=0)
    model: str = ""

    @model_validator(mode="after")
    def _check_end(self) -> Self:
        start_s, _ = self.window
        if start_s >= self.duration_s:
            raise ValueError(
                f"the window starts at {start_s:g} s, the video has {self.duration_s:g}"
            )
        return self

    @classmethod
    def of(
        cls, verdict: Verdict, path: Path, name: str, sha256: str, duration_s: float, model: str
    ) -> FeedbackEntry:
        """A new entry, made now.

        Raises:
            DataError: the window begins after the end of the video.
        """
        try:
            return cls(
                **verdict.model_dump(include=set(Verdict.model_fields)),
                id=uuid4().hex,
                time=datetime.now(UTC),
                path=str(path.absolute()),
                name=name,
                sha256=sha256,
                duration_s=duration_s,
                model=model,
            )
        except ValidationError as error:
            raise DataError(first_mistake(error), file=name) from None

    @property
    def hit(self) -> tuple[str, str, float, float]:
        """What the verdict is about: the same for a later verdict about the same hit."""
        query = normalise_query(self.query).casefold()
        return self.sha256, query, self.start_s, self.end_s


class DeliveryRecord(BaseModel):
    """A delivery of entries for retraining, as the journal holds it.

    Attributes:
        name: of the delivery; None: every entry was left out.
        entries: ids of what it delivers.
        left_out: id -> reason, of entries that are never delivered.
        complete: whether all of it is in the incoming store; there is a record before that, too.
    """

    model_config = ConfigDict(frozen=True)

    name: str | None
    entries: tuple[str, ...]
    left_out: dict[str, str] = {}
    complete: bool


class _Line(BaseModel):
    """A line of the journal."""

    entry: FeedbackEntry | None = None
    delivery: DeliveryRecord | None = None


@dataclass(slots=True)
class JournalState:
    """What a journal says.

    Attributes:
        entries: by id, in the order in which they were made.
        settled: ids of entries that were delivered, or left out for good.
        unfinished: a delivery that was begun and not completed; None: there is none.
        problems: lines that cannot be read, which a crash may have left.
    """

    entries: dict[str, FeedbackEntry] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    unfinished: DeliveryRecord | None = None
    problems: list[str] = field(default_factory=list)

    def add(self, line: _Line) -> None:
        """Take in the next line."""
        if line.entry is not None:
            self.entries[line.entry.id] = line.entry
        if line.delivery is not None:
            self.settled |= set(line.delivery.left_out)
            self.unfinished = None if line.delivery.complete else line.delivery
            if line.delivery.complete:
                self.settled |= set(line.delivery.entries)

    @property
    def deliverable(self) -> list[FeedbackEntry]:
        """Accepted and corrected hits that wait to be delivered."""
        waiting = [entry for entry in self._latest() if entry.id not in self.settled]
        return [entry for entry in waiting if entry.verdict != "reject"]

    @property
    def rejected(self) -> list[FeedbackEntry]:
        """Rejected hits, which no delivery can hold yet."""
        return [entry for entry in self._latest() if entry.verdict == "reject"]

    def _latest(self) -> Sequence[FeedbackEntry]:
        """The last verdict about each hit."""
        return list({entry.hit: entry for entry in self.entries.values()}.values())


class Journal:
    """The journal in one file, which need not exist yet.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: FeedbackEntry) -> None:
        """Add an entry; it is on disk when this returns.

        Raises:
            OutputError: it cannot be written; the journal is as before.
        """
        self._append(_Line(entry=entry))

    def note(self, delivery: DeliveryRecord) -> None:
        """Add the record of a delivery; raises as `append`."""
        self._append(_Line(delivery=delivery))

    def read(self) -> JournalState:
        """All of it; what cannot be read is named and left out.

        Raises:
            DataError: the file cannot be read, or is none of JSON lines.
        """
        state = JournalState()
        if not self.path.exists():
            return state
        for line in json_lines(self.path):
            try:
                if isinstance(line.record, DataError):
                    raise line.record
                state.add(_Line.model_validate(line.record))
            except DataError as error:
                state.problems.append(str(error))
            except ValidationError as error:
                problem = DataError(first_mistake(error), file=self.path, line=line.number)
                state.problems.append(str(problem))
        return state

    def _append(self, line: _Line) -> None:
        content = line.model_dump_json(exclude_none=True).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = file.seek(0, os.SEEK_END)
                if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                    content = b"\n" + content  # Somebody died while writing the last line.
                try:
                    if file.write(content) < len(content):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file)
                except OSError:
                    file.truncate(size)
                    raise
            if not size:
                sync_folder(self.path.parent)
        except OSError as error:
            raise OutputError(self.path, error) from error
