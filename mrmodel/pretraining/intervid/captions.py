"""Rows of a caption table in the InternVid format: their check, and the row-local rules."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrmodel.config.intervid import IntervidSettings
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
_BATCH = 100
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
class BadCaption:
    """A malformed row, and why."""

    line: int
    reason: str
    detail: str

    def as_row(self) -> dict[str, Any]:
        """The row of rejects.jsonl."""
        return {"line": self.line, "reason": self.reason, "detail": self.detail}


@dataclass(slots=True)
class Chunk:
    """Consecutive rows of a table.

    Attributes:
        first_line: line of the first row, counted from 1.
        lines: the rows of a file of JSON lines, empty lines included.
        records: (line, row) of other formats.
        bad: rows that the reader could not split into fields.
        n_bytes: size of the rows in the file, as far as it is known.
    """

    first_line: int
    lines: list[bytes]
    records: list[tuple[int, Any]] = field(default_factory=list)
    bad: list[BadCaption] = field(default_factory=list)
    n_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ParsedChunk:
    """The parsed rows of a chunk.

    Attributes:
        columns: one value per well-formed line: ``line``, ``video_id``, ``text`` (the normalised
            caption), ``caption`` (its 64-bit hash), ``qid``, ``start_ms``, ``end_ms``, ``umt``,
            ``failed`` (index of a rule, or PASSED), ``changed`` (whether the rule `normalise`
            changed the caption).
        bad_rows: the malformed lines.
    """

    columns: dict[str, Any]
    bad_rows: list[BadCaption]


def parse_chunk(chunk: Chunk, settings: IntervidSettings) -> ParsedChunk:
    """Parse a chunk and apply the row-local rules."""
    bad = list(chunk.bad)
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
    found = {
        "line": np.array([row.line for row in rows], dtype=np.int64),
        "video_id": [row.video_id for row in rows],
        "text": captions,
        "caption": _hashes(captions),
        # 53 bits: deterministic, exact in JSON, and in hash order.
        "qid": (_hashes(map(_identity, rows)) >> np.uint64(_QID_SHIFT)).astype(np.int64),
        "start_ms": start_ms.astype(np.int32),
        "end_ms": end_ms.astype(np.int32),
        "umt": umt,
        "failed": first_failed(columns, settings.captions, round(settings.segment.length_s * 1000)),
        "changed": np.array([row.caption != row.raw_caption for row in rows], dtype=bool),
    }
    bad.sort(key=lambda row: row.line)
    return ParsedChunk(found, bad)


def _records(chunk: Chunk, bad: list[BadCaption]) -> Iterator[tuple[int, Any]]:
    """(line, record) of all rows that are not empty; invalid JSON goes to `bad`."""
    numbered = [
        (number, text)
        for number, raw in enumerate(chunk.lines, start=chunk.first_line)
        if (text := raw.strip())
    ]
    for first in range(0, len(numbered), _BATCH):
        yield from _parse_batch(numbered[first : first + _BATCH], bad)
    yield from chunk.records


def _parse_batch(
    numbered: list[tuple[int, bytes]], bad: list[BadCaption]
) -> Iterable[tuple[int, Any]]:
    # One array of a hundred objects parses 2.5 times faster than a hundred objects; pyarrow's
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
    """A 64-bit hash of every text, the same in every process."""
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
