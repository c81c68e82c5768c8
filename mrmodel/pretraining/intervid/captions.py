"""Reading a caption table in the InternVid format, in bounded memory.

A table of ten million rows is ~2 GB of text, so captions are never all in memory. One pass over
chunks keeps about 50 bytes per row: numbers, hashes and the result of the row-local rules. That is
half a gigabyte for InternVid-10M-FLT, so the group rules need no partitions on disk.
`read_selected` then reads the lines of the few kept rows again.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mrmodel.config.intervid import IntervidSettings
from mrmodel.errors import DataError
from mrmodel.lines import byte_lines, json_lines
from mrmodel.pretraining.intervid.caption_rules import (
    CaptionColumns,
    first_failed,
    normalise_caption,
)

COLUMNS = (
    "YoutubeID",
    "Start_timestamp",
    "End_timestamp",
    "Caption",
    "UMT_Score",
    "Aesthetic_Score",
)
_TIME_TEMPLATE = b"00:00:00.000"
_BATCH = 1000
_TRIED_LINES = 100
_QID_SHIFT = 11  # 64-bit hash -> 53 bits, exact in every JSON reader
_VALUES = itemgetter(*COLUMNS)


class _Unusable(Exception):
    """(reason, detail) of a malformed row."""


class _Row(NamedTuple):
    """A well-formed row; `caption` is normalised, times are not parsed yet."""

    line: int
    video_id: str
    start: str
    end: str
    raw_caption: str
    caption: str
    umt: float
    aesthetic: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive lines of the table; `first_line` counts from 1."""

    first_line: int
    lines: list[bytes]


@dataclass(frozen=True, slots=True)
class BadCaption:
    """A malformed row, and why."""

    line: int
    reason: str
    detail: str

    def as_row(self) -> dict[str, Any]:
        """The row of rejects.jsonl."""
        return {"line": self.line, "reason": self.reason, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class ParsedChunk:
    """The parsed rows of a chunk.

    Attributes:
        frame: one row per well-formed line: ``line``, ``video`` and ``caption`` (64-bit hashes),
            ``qid``, ``start_ms``, ``end_ms``, ``umt``, ``failed`` (index of a rule, or PASSED).
        bad_rows: the malformed lines.
        normalised: number of captions that the rule `normalise` changed.
    """

    frame: pd.DataFrame
    bad_rows: list[BadCaption]
    normalised: int


@dataclass(frozen=True, slots=True)
class SelectedCaption:
    """The text fields of a kept row; `caption` is the query."""

    line: int
    video_id: str
    caption: str


def hash64(text: str) -> int:
    """A 64-bit hash, the same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def read_chunks(path: Path, rows: int) -> Iterator[Chunk]:
    """The lines of a table, `rows` at a time.

    Raises:
        DataError: no such file, no JSON lines, or its first row does not have the columns.
    """
    if not path.exists():
        raise DataError("no such caption table", file=path)
    _check_columns(path)
    first_line, rest = 1, byte_lines(path)
    while lines := list(itertools.islice(rest, rows)):
        yield Chunk(first_line, lines)
        first_line += len(lines)


def parse_chunk(chunk: Chunk, settings: IntervidSettings) -> ParsedChunk:
    """Parse a chunk and apply the row-local rules."""
    bad: list[BadCaption] = []
    rows: list[_Row] = []
    for line, record in _records(chunk, bad):
        try:
            rows.append(_checked(line, record, settings.captions.video_id_length))
        except _Unusable as error:
            bad.append(BadCaption(line, *error.args))
    rows, start_ms, end_ms = _with_good_times(rows, bad)
    captions = [row.caption for row in rows]
    umt = np.array([row.umt for row in rows], dtype=np.float64)
    aesthetic = np.array([row.aesthetic for row in rows], dtype=np.float64)
    columns = CaptionColumns(captions, start_ms, end_ms, umt, aesthetic)
    frame = pd.DataFrame(
        {
            "line": np.array([row.line for row in rows], dtype=np.int64),
            "video": _hashes(row.video_id for row in rows),
            "caption": _hashes(captions),
            # 53 bits: deterministic, exact in JSON, and in hash order.
            "qid": (_hashes(map(_identity, rows)) >> np.uint64(_QID_SHIFT)).astype(np.int64),
            "start_ms": start_ms.astype(np.int32),
            "end_ms": end_ms.astype(np.int32),
            "umt": umt,
            "failed": first_failed(
                columns, settings.captions, round(settings.segment.length_s * 1000)
            ),
        }
    )
    changed = sum(row.caption != row.raw_caption for row in rows)
    bad.sort(key=lambda row: row.line)
    return ParsedChunk(frame, bad, changed)


def read_selected(path: Path, lines: NDArray[np.int64]) -> list[SelectedCaption]:
    """Read the texts of some rows of a table.

    Args:
        path: the table.
        lines: ascending line numbers, counted from 1.
    """
    wanted = iter(lines.tolist())
    line = next(wanted, None)
    found: list[SelectedCaption] = []
    for number, raw in enumerate(byte_lines(path), start=1):
        if line is None:
            break
        if number == line:
            record = json.loads(raw)
            caption = normalise_caption(record["Caption"])
            found.append(SelectedCaption(line, record["YoutubeID"], caption))
            line = next(wanted, None)
    return found


def caption_texts(path: Path) -> list[str]:
    """All distinct normalised captions of a table, in order, for the text encoder.

    Malformed rows are skipped here; `parse_chunk` reports them.

    Raises:
        DataError: no such file, or its first row does not have the columns.
    """
    texts: dict[str, None] = {}
    for chunk in read_chunks(path, 10_000):
        for _, record in _records(chunk, []):
            if isinstance(record, dict) and _is_text(record.get("Caption")):
                texts.setdefault(normalise_caption(record["Caption"]))
    texts.pop("", None)
    return list(texts)


def _check_columns(path: Path) -> None:
    """Check the first row that is an object; without one in the first lines, it is another file."""
    first: DataError | None = None
    for line, _, record in itertools.islice(json_lines(path, nan=True), _TRIED_LINES):
        if isinstance(record, DataError):
            first = first or record
            continue
        missing = [name for name in COLUMNS if name not in record]
        if missing:
            found = ", ".join(sorted(record)) or "none"
            rule = f"lacks the columns {', '.join(missing)} (found: {found})"
            raise DataError(rule, file=path, line=line)
        return
    if first is not None:
        raise first


def _records(chunk: Chunk, bad: list[BadCaption]) -> Iterator[tuple[int, Any]]:
    """(line, parsed JSON) of all non-empty lines; invalid JSON goes to `bad`."""
    numbered = [
        (number, text)
        for number, raw in enumerate(chunk.lines, start=chunk.first_line)
        if (text := raw.strip())
    ]
    for first in range(0, len(numbered), _BATCH):
        yield from _parse_batch(numbered[first : first + _BATCH], bad)


def _parse_batch(
    numbered: list[tuple[int, bytes]], bad: list[BadCaption]
) -> Iterable[tuple[int, Any]]:
    # One array of a thousand objects parses 2.5 times faster than a thousand objects; pyarrow's
    # reader is faster still but kills the process on a line `null` (release 25.0.1).
    try:
        records = json.loads(b"[" + b",".join(text for _, text in numbered) + b"]")
    except (ValueError, RecursionError):
        records = []
    if len(records) == len(numbered) and all(isinstance(record, dict) for record in records):
        return list(zip([number for number, _ in numbered], records, strict=True))
    parsed = []
    for number, text in numbered:
        try:
            parsed.append((number, json.loads(text)))
        except (ValueError, RecursionError) as error:
            bad.append(BadCaption(number, "not_json", str(error)))
    return parsed


def _checked(line: int, record: Any, id_length: int | None) -> _Row:
    """Check a row, except its times, which are checked per column.

    Raises:
        _Unusable: with reason and detail.
    """
    if not isinstance(record, dict):
        raise _Unusable("not_an_object", type(record).__name__)
    try:
        video_id, start, end, caption, umt, aesthetic = _VALUES(record)
    except KeyError:
        missing = (name for name in COLUMNS if name not in record)
        raise _Unusable("missing_column", ", ".join(missing)) from None
    if not (_is_text(video_id) and _is_text(start) and _is_text(end) and _is_text(caption)):
        name = next(name for name in COLUMNS if not _is_text(record[name]))
        raise _Unusable("not_text", f"{name} = {record[name]!r}")
    if not video_id or (id_length is not None and len(video_id) != id_length):
        raise _Unusable("bad_video_id", f"{video_id!r}, expected {id_length or 'some'} characters")
    text = normalise_caption(caption)
    if not text:
        raise _Unusable("empty_caption", repr(caption))
    if not (_is_score(umt) and _is_score(aesthetic)):
        name = "Aesthetic_Score" if _is_score(umt) else "UMT_Score"
        raise _Unusable("bad_score", f"{name} = {record[name]!r}")
    return _Row(line, video_id, start, end, caption, text, umt, aesthetic)


def _identity(row: _Row) -> str:
    return f"{row.video_id}|{row.start}|{row.end}|{row.caption}"


def _hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    """`hash64` of every text."""
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def _is_text(value: object) -> bool:
    """Whether `value` is a string that UTF-8 can encode; JSON allows lone surrogates."""
    if not isinstance(value, str):
        return False
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_score(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, float | int):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _times_ms(texts: list[str]) -> NDArray[np.int64]:
    """(n,) milliseconds of ``HH:MM:SS.mmm`` texts; -1 where a text is not of this form."""
    template = np.frombuffer(_TIME_TEMPLATE, dtype=np.uint8)
    width = len(template)
    good = [text.isascii() and len(text) == width for text in texts]
    fixed = [text.encode() if ok else _TIME_TEMPLATE for text, ok in zip(texts, good, strict=True)]
    table = np.frombuffer(b"".join(fixed), dtype=np.uint8).reshape(-1, width)
    is_digit = template == ord("0")
    digits = table[:, is_digit].astype(np.int64) - ord("0")
    formed = (table[:, ~is_digit] == template[~is_digit]).all(axis=1)
    formed &= ((digits >= 0) & (digits <= 9)).all(axis=1)
    formed &= (digits[:, 2] < 6) & (digits[:, 4] < 6) & np.array(good, dtype=bool)
    weights = [36_000_000, 3_600_000, 600_000, 60_000, 10_000, 1000, 100, 10, 1]
    return np.where(formed, digits @ np.array(weights, dtype=np.int64), -1)


def _with_good_times(
    rows: list[_Row], bad: list[BadCaption]
) -> tuple[list[_Row], NDArray[np.int64], NDArray[np.int64]]:
    """The rows with a valid interval, and its two ends in ms; the others go to `bad`."""
    start, end = _times_ms([row.start for row in rows]), _times_ms([row.end for row in rows])
    unreadable = (start < 0) | (end < 0)
    good = ~unreadable & (end > start)
    for index in np.flatnonzero(~good):
        reason = "bad_time" if unreadable[index] else "empty_interval"
        row = rows[index]
        bad.append(BadCaption(row.line, reason, f"{row.start!r} to {row.end!r}"))
    kept = list(itertools.compress(rows, good.tolist()))
    return kept, start[good], end[good]
