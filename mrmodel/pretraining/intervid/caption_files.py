"""Reading a caption table, some rows at a time: JSON lines, CSV or parquet.

JSON lines and CSV may be compressed (``.gz``, ``.zst``). A row is named by the line that it starts
in, or by its number in parquet, both counted from 1.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mrmodel.errors import DataError
from mrmodel.lines import byte_lines, json_lines
from mrmodel.pretraining.intervid.captions import COLUMNS, BadCaption, Chunk

_COMPRESSED = (".gz", ".zst", ".zstd")
SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".parquet")
_SCORES = ("UMT_Score", "Aesthetic_Score")
_TRIED_LINES = 100
_LAST_BYTES = 16 << 20


def is_caption_table(path: Path) -> bool:
    """Whether a file has the name of a caption table."""
    return _format(path) in SUFFIXES


def require_table(path: Path) -> None:
    """Raise an error if a caption table cannot be read at all.

    Raises:
        DataError: no such file, or its name is of no known format.
    """
    if not path.is_file():
        raise DataError("no such caption table", file=path)
    if not is_caption_table(path):
        known = ", ".join(SUFFIXES)
        rule = f"is named as no caption table (known: {known}; all but parquet also .gz or .zst)"
        raise DataError(rule, file=path)


def read_chunks(path: Path, rows: int) -> Iterator[Chunk]:
    """The rows of a table, `rows` at a time.

    Raises:
        DataError: another format, the first row does not have the columns, or the file ends within
            a row or within its compressed data; with the line.
    """
    form = _format(path)
    if form == ".csv":
        yield from _csv_chunks(path, rows)
    elif form == ".parquet":
        yield from _parquet_chunks(path, rows)
    else:
        yield from _json_chunks(path, rows)


def _format(path: Path) -> str:
    """The suffix of the format; empty for compressed parquet, which has its own compression."""
    if path.suffix not in _COMPRESSED:
        return path.suffix.lower()
    inner = path.with_suffix("").suffix.lower()
    return "" if inner == ".parquet" else inner


def _json_chunks(path: Path, rows: int) -> Iterator[Chunk]:
    _check_first_object(path)
    if path.suffix not in _COMPRESSED:
        _check_last_line(path)
    first_line, rest = 1, byte_lines(path)
    while lines := list(itertools.islice(rest, rows)):
        yield Chunk(first_line, lines, n_bytes=sum(map(len, lines)) + len(lines))
        first_line += len(lines)


def _check_first_object(path: Path) -> None:
    """Check the first row that is an object; without one in the first lines, it is another file."""
    first: DataError | None = None
    for line, _, record in itertools.islice(json_lines(path, nan=True), _TRIED_LINES):
        if isinstance(record, DataError):
            first = first or record
            continue
        _require_columns(record, path, line)
        return
    if first is not None:
        raise first


def _require_columns(found: Any, path: Path, line: int | None) -> None:
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        shown = ", ".join(sorted(map(str, found))) or "none"
        rule = f"lacks the columns {', '.join(missing)} (found: {shown})"
        raise DataError(rule, file=path, line=line)


def _check_last_line(path: Path) -> None:
    """Refuse a file whose last line does not end and is no JSON: a copy that was cut off."""
    last = _unended_line(path)
    try:
        json.loads(last or "0")
    except (ValueError, RecursionError):
        raise _cut_off(path, sum(1 for _ in byte_lines(path))) from None


def _unended_line(path: Path) -> bytes:
    """The last line of a file that is not compressed, if no line end follows it; else nothing."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _LAST_BYTES))
        last = file.read()
    return b"" if last.endswith((b"\n", b"\r")) else last.splitlines()[-1] if last else b""


def _cut_off(path: Path, line: int) -> DataError:
    rule = "the file ends within this line, as if it was cut off: copy it again"
    return DataError(rule, file=path, line=line)


def _csv_chunks(path: Path, rows: int) -> Iterator[Chunk]:
    size = 0

    def texts() -> Iterator[str]:
        nonlocal size
        for raw in byte_lines(path):
            size += len(raw) + 1
            # Bytes that are no UTF-8 become surrogates, which the check of a row refuses.
            yield raw.decode(errors="surrogateescape") + "\n"

    reader = csv.reader(texts(), strict=True)
    header = _next_row(reader, path)
    if header is None:
        return
    _require_columns(header, path, 1)
    chunk = Chunk(reader.line_num + 1, [])
    line, counted, last = 0, 0, reader.line_num
    while (fields := _next_row(reader, path)) is not None:
        line, last = last + 1, reader.line_num
        if not fields:
            continue
        if len(fields) == len(header):
            chunk.records.append((line, _typed(dict(zip(header, fields, strict=True)))))
        else:
            detail = f"{len(fields)} fields; the header has {len(header)}"
            chunk.bad.append(BadCaption(line, "field_count", detail))
        if len(chunk.records) + len(chunk.bad) == rows:
            chunk.n_bytes, counted = size - counted, size
            yield chunk
            chunk = Chunk(last + 1, [])
    if chunk.records or chunk.bad:
        is_bad = bool(chunk.bad) and chunk.bad[-1].line == line
        if is_bad and path.suffix not in _COMPRESSED and _unended_line(path):
            raise _cut_off(path, line)
        chunk.n_bytes = size - counted
        yield chunk


def _next_row(reader: Any, path: Path) -> list[str] | None:
    try:
        row: list[str] | None = next(reader, None)
    except csv.Error as error:
        rule = f"not valid CSV: {error}; a quote may be open, or the file cut off"
        raise DataError(rule, file=path, line=reader.line_num) from None
    return row


def _typed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its scores as numbers; a text that is none stays, and is refused later."""
    for name in _SCORES:
        try:
            record[name] = float(record[name])
        except ValueError:
            continue
    return record


def _parquet_chunks(path: Path, rows: int) -> Iterator[Chunk]:
    first = 1
    try:
        with pq.ParquetFile(path) as file:
            _require_columns(file.schema_arrow.names, path, None)
            row_bytes = path.stat().st_size / max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(rows, columns=list(COLUMNS)):
                records = list(enumerate(batch.to_pylist(), start=first))
                yield Chunk(first, [], records, n_bytes=int(row_bytes * len(records)))
                first += len(records)
    except (pa.ArrowException, OSError) as error:
        rule = f"no complete parquet file: {str(error).splitlines()[0]}"
        raise DataError(rule, file=path, line=first) from None
