"""Filters a caption table out of core: chunks to parquet parts, then the rules across rows.

A table of ten million rows is 2 GB of text. Each chunk of it becomes a part on disk, which a run
that was interrupted finds again; memory holds a chunk for each worker and what DuckDB is allowed.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mrmodel.config.intervid import IntervidSettings
from mrmodel.errors import DataError
from mrmodel.files import atomic_path, digest_of, read_object, sha256_of, write_json
from mrmodel.pretraining.intervid.caption_files import read_chunks, require_table
from mrmodel.pretraining.intervid.caption_rules import PASSED, RULES, caption_words
from mrmodel.pretraining.intervid.captions import Chunk, ParsedChunk, parse_chunk
from mrmodel.pretraining.intervid.decontaminate import Excluded
from mrmodel.pretraining.intervid.group_rules import MALFORMED, GroupRules
from mrmodel.progress import Reporter
from mrmodel.version import PACKAGE


def kept_work(work: Path, inputs: Any) -> Path:
    """The folder below `work` for these inputs and this code; others in it are removed.

    Args:
        work: holds nothing but such folders.
        inputs: what decides the content, as JSON values.
    """
    files = (*Path(__file__).parent.iterdir(), PACKAGE / "features/keys.py")
    code = [sha256_of(file) for file in sorted(files) if file.is_file()]
    folder = work / digest_of([inputs, code])[:16]
    for other in work.iterdir() if work.exists() else ():
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


KEPT_FILE, REJECTS_FILE, RECORD_FILE = "kept.parquet", "rejects.parquet", "filter.json"
_MIN_ROW_BYTES = 100  # the column names alone take 90
PART_SCHEMA = pa.schema(
    {
        "line": pa.int64(),
        "failed": pa.int8(),
        "changed": pa.bool_(),
        "caption": pa.uint64(),
        "qid": pa.int64(),
        "start_ms": pa.int32(),
        "end_ms": pa.int32(),
        "umt": pa.float64(),
        "video_id": pa.string(),
        "text": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
    }
)


@dataclass(frozen=True, slots=True)
class FilterJob:
    """What to filter, and where to.

    Attributes:
        table: the caption table; None if the corpus has none.
        excluded: videos that must not be trained on.
        out: folder of the result: kept.parquet, rejects.parquet and, last, filter.json.
        work: folder of what an interrupted run left; removed in the end.
    """

    table: Path | None
    excluded: Excluded
    out: Path
    work: Path


def filter_captions(
    job: FilterJob, settings: IntervidSettings, reporter: Reporter
) -> dict[str, Any]:
    """Apply all rules; returns the record that filter.json holds.

    Raises:
        DataError: the table is missing, has other columns or is cut off; rule `leak` is on and
            there is no list of evaluation videos; or the fraction of malformed rows exceeds
            `captions.max_bad_row_share` (rejects.parquet is written then).
        OutputError: the disk is full.
    """
    (job.out / RECORD_FILE).unlink(missing_ok=True)
    if job.table is not None:
        require_table(job.table)
    if settings.captions.rules.leak and not job.excluded.lists:
        rule = "no list of evaluation videos: give one, or switch off intervid.captions.rules.leak"
        raise DataError(rule, file=job.table)
    state = _described(job, settings)
    parts_folder = kept_work(job.work, state | {"chunk_rows": settings.chunk_rows})
    parts = list(_parts(job.table, parts_folder, settings, reporter))
    if not parts:
        parts = [_write_part(Chunk(1, []), parts_folder / "empty.parquet", settings)]
    reporter.start("rules across rows", 3)
    leak = job.excluded.videos
    threads = settings.workers or os.cpu_count() or 1
    spill = job.work / "spill"
    with GroupRules(parts, settings.captions, leak, spill, threads) as rules:
        reporter.advance()
        counts, bad = rules.counts(), rules.malformed()
        rules.write_rejects(job.out / REJECTS_FILE)
        reporter.advance()
        rows = sum(counts.values()) + sum(bad.values())
        if job.table is not None and sum(bad.values()) > settings.captions.max_bad_row_share * rows:
            raise _too_many_bad(job, settings, bad, rows, rules.first_malformed())
        rules.write_kept(job.out / KEPT_FILE)
        reporter.advance()
        record = state | {
            "rows": {"read": rows, "bad": bad, "normalised": rules.normalised()},
            "rules": {name: counts[name] for name in RULES},
            "kept": {
                "captions": counts["kept"],
                "duplicate_row": counts["duplicate_row"],
                "qid_collision": counts["qid_collision"],
            },
        }
    reporter.finish()
    write_json(job.out / RECORD_FILE, record)
    shutil.rmtree(job.work, ignore_errors=True)
    return record


def read_filter_record(folder: Path) -> dict[str, Any]:
    """What `filter_captions` wrote to filter.json.

    Raises:
        DataError: it is not there, so the folder is incomplete.
    """
    try:
        return read_object(folder / RECORD_FILE)
    except FileNotFoundError:
        raise DataError("is not there: the filter did not end", file=folder / RECORD_FILE) from None


def _described(job: FilterJob, settings: IntervidSettings) -> dict[str, Any]:
    """Everything that decides the result."""
    table = None
    if job.table is not None:
        size = job.table.stat().st_size
        table = {"name": job.table.name, "bytes": size, "sha256": sha256_of(job.table)}
    return {
        "format": 1,
        "table": table,
        "captions": settings.captions.model_dump(mode="json"),
        "max_interval_s": settings.segment.length_s,
        "caption_words_version": caption_words().version,
        "excluded": job.excluded.described() if settings.captions.rules.leak else None,
    }


def _parts(
    table: Path | None, folder: Path, settings: IntervidSettings, reporter: Reporter
) -> Iterator[Path]:
    """The parts of a table in order, made unless they are there."""
    if table is None:
        return
    write = partial(_write_part, settings=settings)
    size = table.stat().st_size
    workers = settings.workers or os.cpu_count() or 1
    if size < settings.chunk_rows * _MIN_ROW_BYTES:
        workers = 1  # a single chunk is not worth starting processes
    reporter.start("read captions", size)
    done = 0
    chunks = read_chunks(table, settings.chunk_rows)
    named = ((chunk, folder / f"{index:06d}.parquet") for index, chunk in enumerate(chunks))
    for chunk, path in _in_order(write, named, workers):
        reporter.advance(min(chunk.n_bytes, size - done))
        done += min(chunk.n_bytes, size - done)
        yield path
    reporter.advance(size - done)
    reporter.finish()


def _in_order(
    write: Any, named: Iterable[tuple[Chunk, Path]], workers: int
) -> Iterator[tuple[Chunk, Path]]:
    """Write the chunks that have no part yet; at most two chunks per worker are in memory."""
    if workers == 1:
        for chunk, path in named:
            if not path.exists():
                write(chunk, path)
            yield chunk, path
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: deque[tuple[Chunk, Path, Future[Path] | None]] = deque()
        for chunk, path in named:
            made = None if path.exists() else pool.submit(write, chunk, path)
            waiting.append((Chunk(chunk.first_line, [], n_bytes=chunk.n_bytes), path, made))
            if len(waiting) >= 2 * workers:
                yield _ended(*waiting.popleft())
        while waiting:
            yield _ended(*waiting.popleft())


def _ended(chunk: Chunk, path: Path, made: Future[Path] | None) -> tuple[Chunk, Path]:
    if made is not None:
        made.result()
    return chunk, path


def _write_part(chunk: Chunk, path: Path, settings: IntervidSettings) -> Path:
    """Parse a chunk and write its rows, the malformed ones included, in the order of lines."""
    table = _part_table(parse_chunk(chunk, settings))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file, compression="zstd", compression_level=1)
    return path


def _part_table(parsed: ParsedChunk) -> pa.Table:
    """The texts of rows that a row-local rule removed are left out."""
    removed = parsed.columns["failed"] != PASSED
    good = _table(parsed.columns | {"text": pa.array(parsed.columns["text"], mask=removed)})
    if not parsed.bad_rows:
        return good
    bad = _table(
        {
            "line": [row.line for row in parsed.bad_rows],
            "failed": [MALFORMED] * len(parsed.bad_rows),
            "reason": [row.reason for row in parsed.bad_rows],
            "detail": [row.detail for row in parsed.bad_rows],
        }
    )
    return pa.concat_tables([good, bad]).sort_by("line")


def _table(columns: dict[str, Any]) -> pa.Table:
    """A table of `PART_SCHEMA`; columns that are not given are null."""
    rows = len(columns["line"])
    return pa.table(
        {
            field.name: pa.array(columns[field.name], field.type)
            if field.name in columns
            else pa.nulls(rows, field.type)
            for field in PART_SCHEMA
        }
    )


def _too_many_bad(
    job: FilterJob, settings: IntervidSettings, bad: dict[str, int], rows: int, line: int
) -> DataError:
    most = settings.captions.max_bad_row_share
    reasons = ", ".join(f"{reason} {count}" for reason, count in bad.items())
    rule = f"{sum(bad.values())} of {rows} rows are bad, more than {most:.1%} ({reasons}); see "
    return DataError(f"{rule}{job.out / REJECTS_FILE}", file=job.table, line=line)
