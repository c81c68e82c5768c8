"""index.parquet of a feature store: per key, the location of its rows and their origin.

pyarrow is imported lazily: it would make worker processes that only create entries half as large
again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mrmodel.errors import FeatureError
from mrmodel.files import atomic_path

INDEX_FILE = "index.parquet"
Status = Literal["ok", "partial", "failed"]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Index entry of one key, without the location of its rows.

    Attributes:
        key: video id or text key.
        n_rows: rows stored; 0 when the item failed.
        duration_s: length of the source, in seconds; 0 for text.
        status, reason: result of the extraction; the reason is empty on success.
        n_interpolated: rows whose clip had no frame of its own.
        src_sha256: of the source file; empty for text. For a video in S3 it is that of the pointer,
            which holds address, ETag and size of the object.
        extra: further metadata as JSON.
        start_s: time of the first row as a player counts it: seconds from the start of the file
            to the first picture (`DecodeReport.start_s`).
    """

    key: str
    n_rows: int
    duration_s: float = 0.0
    status: Status = "ok"
    reason: str = ""
    n_interpolated: int = 0
    src_sha256: str = ""
    extra: str = "{}"
    start_s: float = 0.0


_OF_ENTRY = tuple(field.name for field in fields(IndexEntry))


@dataclass(frozen=True, slots=True)
class IndexRow:
    """An entry and the location of its rows: `n_rows` rows of `shard`, from `row_offset` on."""

    entry: IndexEntry
    shard: int
    row_offset: int


def write_index(folder: Path, rows: list[IndexRow]) -> None:
    """Write index.parquet atomically; equal rows give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [getattr(row.entry, name) for row in rows] for name in _OF_ENTRY}
    columns["shard"] = [row.shard for row in rows]
    columns["row_offset"] = [row.row_offset for row in rows]
    table = pa.Table.from_pydict(columns, schema=_schema())
    with atomic_path(folder / INDEX_FILE) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file, compression="zstd", version="2.6")


def read_index(folder: Path) -> list[IndexRow]:
    """Read index.parquet.

    Raises:
        FeatureError: the file is missing, is not parquet, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / INDEX_FILE
    try:
        # pyarrow would take a path with a colon for an address, hence a file. Single-threaded: a
        # process that forks or is pinned to a core must not start a thread pool.
        with path.open("rb") as file:
            table = pq.read_table(file, schema=_schema(), use_threads=False)
    except FileNotFoundError:
        raise FeatureError(f"{folder}: no {INDEX_FILE}") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise FeatureError(f"{path}: not a feature index: {error}") from None
    rows = []
    for record in table.to_pylist():
        shard, row_offset = record.pop("shard"), record.pop("row_offset")
        rows.append(IndexRow(IndexEntry(**record), shard, row_offset))
    return rows


def _schema() -> Any:
    import pyarrow as pa

    kinds = {
        "key": pa.string(),
        "shard": pa.int32(),
        "row_offset": pa.int64(),
        "n_rows": pa.int64(),
        "start_s": pa.float64(),
        "duration_s": pa.float64(),
        "status": pa.string(),
        "reason": pa.string(),
        "n_interpolated": pa.int32(),
        "src_sha256": pa.string(),
        "extra": pa.string(),
    }
    return pa.schema(list(kinds.items()))
