"""Caption rules across rows (generic, dedupe, cap, leak), by DuckDB over parquet.

A row is marked with the first rule that it fails, like the row-local rules. DuckDB spills to disk,
so memory does not grow with the table; every result is ordered by keys of its own, so it depends
neither on threads nor on the order of the files. The order of the table's rows decides nothing but
which of two equal rows stays.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from mrmodel.config.intervid import CaptionSettings
from mrmodel.errors import OutputError
from mrmodel.files import atomic_path
from mrmodel.pretraining.intervid.caption_rules import PASSED, RULES, rule_index

MALFORMED = -2  # in the column `failed`, beside PASSED and the indices of RULES
DUPLICATE_ROW, QID_COLLISION = len(RULES), len(RULES) + 1
OUTCOMES = (*RULES, "duplicate_row", "qid_collision")
MEMORY_LIMIT = "1GB"
ROWS_OF_A_GROUP = 65_536

KEPT_SCHEMA = pa.schema(
    {
        "line": pa.int64(),
        "qid": pa.int64(),
        "video_id": pa.string(),
        "caption": pa.string(),
        "start_ms": pa.int32(),
        "end_ms": pa.int32(),
        "umt": pa.float64(),
        "table_end_ms": pa.int32(),
    }
)
REJECT_SCHEMA = pa.schema({"line": pa.int64(), "reason": pa.string(), "detail": pa.string()})
# Best UMT score first; ties by content, not by position.
_BEST_FIRST = "umt DESC, start_ms, end_ms, caption, line"


class GroupRules:
    """The rows of all parts, judged; use as a context manager.

    Args:
        parts: parquet files of `filtering.PART_SCHEMA`.
        settings: enabled rules and limits.
        leak_videos: ids of evaluation videos.
        spill: folder for what does not fit into memory.
        threads: of DuckDB.

    Raises:
        OutputError: the disk is full.
    """

    def __init__(
        self,
        parts: Sequence[Path],
        settings: CaptionSettings,
        leak_videos: AbstractSet[str],
        spill: Path,
        threads: int,
    ) -> None:
        self._spill = spill
        self._database = duckdb.connect(
            config={
                "threads": threads,
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": str(spill),
                "preserve_insertion_order": False,
            }
        )
        # Parquet files are opened by name, and a name may hold the marks of a pattern.
        names = [re.sub(r"([*?\[])", r"[\1]", str(path)) for path in parts]
        listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
        self._run(f"CREATE VIEW rows AS SELECT * FROM read_parquet([{listed}])")
        self._run("CREATE TABLE removed (line BIGINT, rule TINYINT)")
        self._judge(settings, leak_videos)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def counts(self) -> dict[str, int]:
        """Number of rows by outcome of `OUTCOMES`, of those removed and those kept."""
        found = self._run(
            "SELECT coalesce(rule, failed), count(*) FROM rows LEFT JOIN removed USING (line) "
            f"WHERE failed != {MALFORMED} GROUP BY 1"
        ).fetchall()
        by_code = dict(found)
        counts = {name: by_code.get(code, 0) for code, name in enumerate(OUTCOMES)}
        return counts | {"kept": by_code.get(PASSED, 0)}

    def malformed(self) -> dict[str, int]:
        """Number of malformed rows by reason."""
        query = (
            f"SELECT reason, count(*) FROM rows WHERE failed = {MALFORMED} GROUP BY 1 ORDER BY 1"
        )
        return dict(self._run(query).fetchall())

    def first_malformed(self) -> int:
        """Line of the first malformed row."""
        query = f"SELECT min(line) FROM rows WHERE failed = {MALFORMED}"
        return int(self._run(query).fetchall()[0][0])

    def normalised(self) -> int:
        """Number of captions that the rule `normalise` changed."""
        return int(self._run("SELECT count(*) FROM rows WHERE changed").fetchall()[0][0])

    def write_kept(self, target: Path) -> None:
        """Write the rows that pass every rule, ascending in qid, as `KEPT_SCHEMA`."""
        query = (
            "WITH ends AS (SELECT video_id, max(end_ms) AS table_end_ms FROM rows GROUP BY 1) "
            "SELECT rows.line, rows.qid, video_id, text AS caption, start_ms, end_ms, umt, "
            "table_end_ms FROM rows ANTI JOIN removed USING (line) JOIN ends USING (video_id) "
            f"WHERE failed = {PASSED} ORDER BY qid, line"
        )
        self._write(target, KEPT_SCHEMA, query)

    def write_rejects(self, target: Path) -> None:
        """Write line, reason and detail of every other row, by line, as `REJECT_SCHEMA`."""
        names = ", ".join(f"'{name}'" for name in OUTCOMES)
        query = (
            f"SELECT line, coalesce(reason, [{names}][coalesce(rule, failed) + 1]) AS reason, "
            "detail FROM rows LEFT JOIN removed USING (line) "
            f"WHERE rule IS NOT NULL OR failed != {PASSED} ORDER BY line"
        )
        self._write(target, REJECT_SCHEMA, query)

    def _judge(self, settings: CaptionSettings, leak_videos: AbstractSet[str]) -> None:
        rules = settings.rules
        if rules.generic:
            self._remove_generic(settings.generic_videos)
        self._run(
            "CREATE TABLE alive AS SELECT line, video_id, caption, qid, start_ms, end_ms, umt "
            f"FROM rows ANTI JOIN removed USING (line) WHERE failed = {PASSED}"
        )
        if rules.dedupe:
            self._remove(self._overlapping(), "dedupe")
        if rules.cap:
            self._run(
                f"INSERT INTO removed SELECT line, {rule_index('cap')} FROM (SELECT line, "
                f"row_number() OVER (PARTITION BY video_id ORDER BY {_BEST_FIRST}) AS place "
                f"FROM {_ALIVE}) WHERE place > {settings.max_per_video}"
            )
        if rules.leak:
            self._database.register("leaked", pa.table({"video_id": sorted(leak_videos)}))
            self._run(
                f"INSERT INTO removed SELECT line, {rule_index('leak')} "
                f"FROM {_ALIVE} WHERE video_id IN (SELECT video_id FROM leaked)"
            )
        self._run(
            "INSERT INTO removed SELECT line, "
            f"CASE WHEN same > 1 THEN {DUPLICATE_ROW} ELSE {QID_COLLISION} END FROM (SELECT line, "
            "row_number() OVER (PARTITION BY qid ORDER BY line) AS place, row_number() OVER "
            "(PARTITION BY qid, video_id, caption, start_ms, end_ms ORDER BY line) AS same "
            f"FROM {_ALIVE}) WHERE place > 1"
        )

    def _remove_generic(self, videos: int) -> None:
        """Remove captions of many videos; the rule overrides the row-local ones after it."""
        code = rule_index("generic")
        frequent = f"SELECT caption FROM rows GROUP BY caption HAVING count(*) >= {videos}"
        self._run(
            "CREATE TABLE generic AS SELECT caption FROM (SELECT DISTINCT caption, video_id "
            f"FROM rows WHERE caption IN ({frequent})) GROUP BY caption HAVING count(*) >= {videos}"
        )
        self._run(
            f"INSERT INTO removed SELECT line, {code} FROM rows SEMI JOIN generic USING (caption) "
            f"WHERE failed = {PASSED} OR failed > {code}"
        )

    def _overlapping(self) -> Iterator[int]:
        """Lines of rows that overlap a better row with the same caption and video."""
        pairs = f"SELECT video_id, caption FROM {_ALIVE} GROUP BY ALL HAVING count(*) > 1"
        repeated = (
            f"SELECT video_id, caption, start_ms, end_ms, line FROM {_ALIVE} "
            f"SEMI JOIN ({pairs}) USING (video_id, caption) "
            f"ORDER BY video_id, {_BEST_FIRST.replace('umt', 'caption, umt', 1)}"
        )
        group: tuple[str, int] | None = None
        kept: list[tuple[int, int]] = []
        for batch in self._batches(repeated):
            columns = (column.to_pylist() for column in batch.columns)
            for video, caption, start, end, line in zip(*columns, strict=True):
                if (video, caption) != group:
                    group, kept = (video, caption), []
                if any(start < other_end and other < end for other, other_end in kept):
                    yield line
                else:
                    kept.append((start, end))

    def _remove(self, lines: Iterable[int], rule: str) -> None:
        found = pa.table({"line": pa.array(list(lines), pa.int64())})
        self._database.register("found", found)
        self._run(f"INSERT INTO removed SELECT line, {rule_index(rule)} FROM found")
        self._database.unregister("found")

    def _write(self, target: Path, schema: pa.Schema, query: str) -> None:
        """Write the rows of a query in groups of the same size, whatever DuckDB hands over."""
        with (
            atomic_path(target) as temporary,
            temporary.open("wb") as file,
            pq.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            waiting: list[pa.RecordBatch] = []
            for batch in self._batches(query):
                waiting.append(batch)
                if sum(map(len, waiting)) >= ROWS_OF_A_GROUP:
                    table = pa.Table.from_batches(waiting).combine_chunks().cast(schema)
                    writer.write_table(table.slice(0, ROWS_OF_A_GROUP))
                    waiting = table.slice(ROWS_OF_A_GROUP).to_batches()
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting).combine_chunks().cast(schema))

    def _batches(self, query: str) -> Iterator[pa.RecordBatch]:
        with self._full_disk():
            yield from self._database.sql(query).to_arrow_reader(ROWS_OF_A_GROUP)

    def _run(self, query: str) -> Any:
        with self._full_disk():
            return self._database.execute(query)

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        """Name the folder where DuckDB cannot write what does not fit into its memory."""
        try:
            yield
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            full = OSError(errno.ENOSPC, str(error).splitlines()[0])
            raise OutputError(self._spill, full) from error


_ALIVE = "(FROM alive ANTI JOIN removed USING (line)) AS alive"
