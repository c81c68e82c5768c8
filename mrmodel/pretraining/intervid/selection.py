"""Selects captions in hash order, and lists the features that they need.

Features cost a thousand times as much as captions, so captions are selected first. A smaller
selection is a prefix of every larger one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mrmodel.config.intervid import IntervidSettings
from mrmodel.errors import DataError
from mrmodel.files import atomic_path, read_object, sha256_of, write_json
from mrmodel.pretraining.intervid.filtering import KEPT_FILE, read_filter_record
from mrmodel.pretraining.intervid.group_rules import KEPT_SCHEMA
from mrmodel.pretraining.intervid.segments import Intervals, Segments, choose_segments

SELECTED_FILE, SEGMENTS_FILE, RECORD_FILE = "selected.parquet", "segments.csv", "select.json"
SHARD_ROWS = 4096  # captions whose segments are in memory at once

Ints = NDArray[np.int64]


def select_captions(
    filtered: Path, settings: IntervidSettings, clip_len_s: float, out: Path
) -> dict[str, Any]:
    """Write the first `max_captions` kept captions and the segments whose clips they need.

    Writes selected.parquet (`group_rules.KEPT_SCHEMA`), segments.csv (vid, video_id, start_s,
    end_s; each segment once) and, last, select.json, whose content it returns. A segment lies as in
    `segments.choose_segments`, with the latest end of any caption as the length of its video, which
    is not known yet. Where features of whole videos are extracted, their length places it anew.

    Args:
        filtered: folder of `filtering.filter_captions`.
        settings: `max_captions`, segments, seed.
        clip_len_s: seconds of a clip.
        out: target folder.

    Raises:
        DataError: `filtered` is incomplete.
    """
    (out / RECORD_FILE).unlink(missing_ok=True)
    record = read_filter_record(filtered)
    captions, videos = 0, set[str]()
    segments: dict[str, None] = {}
    with (
        atomic_path(out / SELECTED_FILE) as selected,
        atomic_path(out / SEGMENTS_FILE) as listed,
        selected.open("wb") as parquet,
        listed.open("w", encoding="utf-8", newline="") as text,
        pq.ParquetWriter(parquet, KEPT_SCHEMA, compression="zstd") as writer,
    ):
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("vid", "video_id", "start_s", "end_s"))
        for shard in read_shards(filtered / KEPT_FILE, settings.max_captions):
            writer.write_table(shard)
            captions += len(shard)
            videos.update(shard["video_id"].to_pylist())
            for row in _segment_rows(shard, settings, clip_len_s):
                if row[0] not in segments:
                    segments[row[0]] = None
                    table.writerow(row)
    counts = {"captions": captions, "videos": len(videos), "segments": len(segments)}
    found = {
        "filter": record,
        "selected": counts,
        "selected_sha256": sha256_of(out / SELECTED_FILE),
    }
    write_json(out / RECORD_FILE, found)
    return found


def read_selection_record(folder: Path) -> dict[str, Any]:
    """What `select_captions` wrote to select.json.

    Raises:
        DataError: it is not there, so the folder is incomplete.
    """
    path = folder / RECORD_FILE
    try:
        return read_object(path)
    except FileNotFoundError:
        raise DataError("is not there: the selection did not end", file=path) from None


def read_shards(path: Path, most: int | None = None) -> Iterator[pa.Table]:
    """The first `most` rows of a table of `KEPT_SCHEMA` (None: all), `SHARD_ROWS` at a time."""
    waiting, left = KEPT_SCHEMA.empty_table(), most
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(SHARD_ROWS):
            if left == 0:
                break
            taken = pa.Table.from_batches([batch]).slice(0, left)
            left = None if left is None else left - len(taken)
            waiting = pa.concat_tables([waiting, taken])
            if len(waiting) >= SHARD_ROWS:
                yield waiting.slice(0, SHARD_ROWS).combine_chunks()
                waiting = waiting.slice(SHARD_ROWS)
    if len(waiting):
        yield waiting.combine_chunks()


def selected_texts(folder: Path) -> list[str]:
    """The captions of a selection, which are the sentences that a text encoder must read."""
    column = pq.read_table(folder / SELECTED_FILE, columns=["caption"])["caption"]
    texts: list[str] = column.to_pylist()
    return texts


def column(rows: pa.Table, name: str) -> Ints:
    """(n,) int64 values of a column."""
    values: Ints = rows[name].to_numpy().astype(np.int64)
    return values


def segment_names(
    video_ids: list[str], segments: Segments, clip_len_s: float, late_ms: Ints | None = None
) -> list[str]:
    """``<id>_<start>_<end>`` of n segments.

    Args:
        video_ids: of the segments.
        segments: n segments.
        clip_len_s: seconds of a clip.
        late_ms: (n,) time of the first picture; None: zeros.
    """
    firsts = segments.first_clip.tolist()
    lasts = (segments.first_clip + segments.n_clips).tolist()
    lates = [0] * len(firsts) if late_ms is None else late_ms.tolist()
    names = []
    for video_id, first, last, late in zip(video_ids, firsts, lasts, lates, strict=True):
        start_s, end_s = (clip * clip_len_s + late / 1000 for clip in (first, last))
        decimals = 3 if late else 1
        names.append(f"{video_id}_{start_s:.{decimals}f}_{end_s:.{decimals}f}")
    return names


def _segment_rows(
    rows: pa.Table, settings: IntervidSettings, clip_len_s: float
) -> list[tuple[str, str, str, str]]:
    """Rows of segments.csv, without those that are too short for a sample."""
    intervals = Intervals(
        column(rows, "qid"),
        column(rows, "start_ms"),
        column(rows, "end_ms"),
        column(rows, "table_end_ms"),
    )
    clip_ms = round(clip_len_s * 1000)
    segments = choose_segments(intervals, settings.segment, clip_ms, settings.seed)
    video_ids: list[str] = rows["video_id"].to_pylist()
    vids = segment_names(video_ids, segments, clip_len_s)
    found = []
    for vid, video_id, n_clips in zip(vids, video_ids, segments.n_clips.tolist(), strict=True):
        if n_clips >= settings.segment.min_clips:
            start_s, end_s = vid.rsplit("_", 2)[1:]
            found.append((vid, video_id, start_s, end_s))
    return found
