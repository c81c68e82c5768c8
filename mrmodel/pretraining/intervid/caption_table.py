"""Filters a caption table: one pass over its chunks, then the group rules."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from mrmodel.config.intervid import IntervidSettings
from mrmodel.pretraining.intervid.caption_rules import PASSED
from mrmodel.pretraining.intervid.captions import (
    BadCaption,
    Chunk,
    ParsedChunk,
    parse_chunk,
    read_chunks,
)
from mrmodel.pretraining.intervid.group_rules import apply_group_rules, count_rules
from mrmodel.progress import Reporter

_MIN_ROW_BYTES = 100  # the column names alone take 90


@dataclass(frozen=True, slots=True)
class CaptionTable:
    """A filtered caption table and its counts.

    Attributes:
        kept: rows that pass every rule, ascending in ``qid``, with the columns of
            `captions.ParsedChunk` and ``table_end_ms``, the latest end of any row of the video.
        bad_rows: malformed rows.
        rows: number of non-empty lines.
        normalised: captions that the rule `normalise` changed.
        removed: number of rows removed, by rule.
        duplicates: rows dropped because the table has an equal row.
        collisions: lines dropped because another row has the same qid (hash collision).
    """

    kept: pd.DataFrame
    bad_rows: list[BadCaption]
    rows: int
    normalised: int
    removed: dict[str, int]
    duplicates: int
    collisions: list[int]

    def bad_counts(self) -> dict[str, int]:
        """Number of bad rows by reason."""
        return dict(sorted(Counter(row.reason for row in self.bad_rows).items()))


def filter_captions(
    path: Path, settings: IntervidSettings, leak_videos: AbstractSet[str], reporter: Reporter
) -> CaptionTable:
    """Read a caption table and apply all rules.

    Raises:
        DataError: the table is missing or has other columns.
    """
    chunks = list(_parsed(path, settings, reporter))
    bad_rows = [row for chunk in chunks for row in chunk.bad_rows]
    normalised = sum(chunk.normalised for chunk in chunks)
    frames = [chunk.frame for chunk in chunks] or [parse_chunk(Chunk(1, []), settings).frame]
    rows = pd.concat(frames, ignore_index=True)
    failed = apply_group_rules(rows, settings.captions, leak_videos)
    rows["table_end_ms"] = rows.groupby("video", sort=False)["end_ms"].transform("max")
    kept = rows[failed == PASSED].sort_values(["qid", "line"], ignore_index=True)
    same_id = kept.duplicated("qid").to_numpy()
    same_row = kept.duplicated(["qid", "video", "caption", "start_ms", "end_ms"]).to_numpy()
    return CaptionTable(
        kept=kept[~same_id].reset_index(drop=True),
        bad_rows=bad_rows,
        rows=len(rows) + len(bad_rows),
        normalised=normalised,
        removed=count_rules(failed),
        duplicates=int(np.count_nonzero(same_row)),
        collisions=kept["line"].to_numpy()[same_id & ~same_row].tolist(),
    )


def _parsed(path: Path, settings: IntervidSettings, reporter: Reporter) -> Iterator[ParsedChunk]:
    parse = partial(parse_chunk, settings=settings)
    size = path.stat().st_size if path.exists() else 0
    workers = settings.workers or os.cpu_count() or 1
    if size < settings.chunk_rows * _MIN_ROW_BYTES:
        workers = 1  # a single chunk is not worth starting processes
    reporter.start("read captions", size)
    try:
        for chunk, parsed in _in_order(parse, read_chunks(path, settings.chunk_rows), workers):
            reporter.advance(sum(map(len, chunk.lines)) + len(chunk.lines))
            yield parsed
    finally:
        reporter.finish()


def _in_order(
    parse: Callable[[Chunk], ParsedChunk], chunks: Iterable[Chunk], workers: int
) -> Iterator[tuple[Chunk, ParsedChunk]]:
    """Results in the order of the chunks; at most two chunks per worker are in memory."""
    if workers == 1:
        yield from ((chunk, parse(chunk)) for chunk in chunks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: deque[tuple[Chunk, Future[ParsedChunk]]] = deque()
        for chunk in chunks:
            waiting.append((chunk, pool.submit(parse, chunk)))
            if len(waiting) >= 2 * workers:
                done, result = waiting.popleft()
                yield done, result.result()
        while waiting:
            done, result = waiting.popleft()
            yield done, result.result()
