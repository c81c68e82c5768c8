"""Checks of a feature store: its consistency, and its coverage of a corpus's annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from mrmodel.config.base import MAX_CLIP_LEN_S, MIN_CLIP_LEN_S
from mrmodel.data.annotations import DEFAULT_CLIP_LEN_S, read_annotations, scan_annotations
from mrmodel.data.datasets.convert import RECORD, SPLITS
from mrmodel.data.ingest.summary import PRETRAINING
from mrmodel.errors import DataError, FeatureError
from mrmodel.features.index import IndexRow, read_index
from mrmodel.features.keys import text_key
from mrmodel.features.manifest import Manifest, read_manifest
from mrmodel.features.store import FeatureStore, Half
from mrmodel.files import digest_of, read_object, sha256_of
from mrmodel.types import Annotation

_BLOCK_ROWS = 1 << 16


def verify_store(folder: Path, annotations: Path | None = None) -> list[str]:
    """List all problems of a store; empty if it is valid.

    Checks hashes, types and shapes of the shards, offsets, overlaps and rows without a key, NaN
    and infinity, and (with `annotations`) that every video or query has features.

    Raises:
        DataError: the annotation file itself is invalid.
    """
    try:
        manifest = read_manifest(folder)
        rows = read_index(folder)
    except FeatureError as error:
        return [str(error)]
    findings = [*_check_index(rows), *_check_places(manifest, rows)]
    for number, shard in enumerate(manifest.shards):
        path = folder / shard.file
        if not path.exists():
            findings.append(f"{shard.file}: is missing")
        elif sha256_of(path) != shard.sha256:
            findings.append(f"{shard.file}: SHA-256 differs from the manifest's {shard.sha256}")
        else:
            findings.extend(_check_values(path, manifest, number, rows))
    if annotations is not None:
        findings.extend(_check_coverage(folder, annotations))
    return findings


def late_starts(folder: Path) -> list[str]:
    """A line for each video whose pictures start later than its file, by a player's clock."""
    found = [row.entry for row in read_index(folder) if row.entry.start_s]
    return [
        f"{entry.key}: pictures start {entry.start_s:.2f} s after the file does; answers are moved "
        "by that, and annotations back"
        for entry in found
    ]


def _check_index(rows: list[IndexRow]) -> Iterator[str]:
    keys = [row.entry.key for row in rows]
    for earlier, later in pairwise(keys):
        if later == earlier:
            yield f"index: key {later!r} occurs twice"
        elif later < earlier:
            yield f"index: key {later!r} after {earlier!r}: not in order"
    for row in rows:
        entry = row.entry
        if entry.status not in ("ok", "partial", "failed"):
            yield f"index: {entry.key!r} has the unknown status {entry.status!r}"
        if (entry.status == "failed") != (entry.n_rows == 0):
            yield f"index: {entry.key!r} is {entry.status} with {entry.n_rows} rows"
        if not 0 <= entry.n_interpolated <= max(entry.n_rows, 0):
            yield f"index: {entry.key!r}: {entry.n_interpolated} of {entry.n_rows} interpolated"


def _check_places(manifest: Manifest, rows: list[IndexRow]) -> Iterator[str]:
    by_shard: dict[int, list[IndexRow]] = {number: [] for number in range(len(manifest.shards))}
    for row in rows:
        if row.entry.n_rows == 0:
            continue
        if row.shard not in by_shard:
            yield f"index: {row.entry.key!r} lies in shard {row.shard}, which does not exist"
        else:
            by_shard[row.shard].append(row)
    for number, placed in by_shard.items():
        shard, end = manifest.shards[number], 0
        for row in sorted(placed, key=lambda row: row.row_offset):
            first = row.row_offset
            if first < end:
                yield f"{shard.file}: {row.entry.key!r} overlaps the rows before {end}"
            elif first > end:
                yield f"{shard.file}: rows {end} to {first - 1} belong to no key"
            end = max(end, first + row.entry.n_rows)
        if end > shard.rows:
            yield f"{shard.file}: the index goes to row {end}, the shard has {shard.rows}"
        elif end < shard.rows:
            yield f"{shard.file}: rows {end} to {shard.rows - 1} belong to no key"


def _check_values(
    path: Path, manifest: Manifest, number: int, rows: list[IndexRow]
) -> Iterator[str]:
    expected = (manifest.shards[number].rows, manifest.info.dim)
    try:
        values: Half = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        yield f"{path.name}: cannot be read: {error}"
        return
    if values.shape != expected or values.dtype != np.float16:
        yield f"{path.name}: is {values.dtype} {values.shape}, expected float16 {expected}"
        return
    placed = sorted((row for row in rows if row.shard == number), key=lambda row: row.row_offset)
    starts = np.array([row.row_offset for row in placed])
    for first in range(0, len(values), _BLOCK_ROWS):
        finite = np.isfinite(values[first : first + _BLOCK_ROWS]).all(axis=1)
        for bad in (np.flatnonzero(~finite) + first).tolist():
            owner = int(np.searchsorted(starts, bad, side="right")) - 1
            key = placed[owner].entry.key if owner >= 0 else None
            yield f"{path.name}: row {bad} (key {key!r}) holds NaN or infinity"


def _check_coverage(folder: Path, annotations: Path) -> Iterator[str]:
    store = FeatureStore(folder)
    seen = set()
    for row in read_annotations(annotations, store.clip_len_s or 2.0):
        key = text_key(row.query) if store.info.keyed_by == "text" else row.vid
        if key in seen:
            continue
        seen.add(key)
        try:
            store.resolve([key])
        except FeatureError as error:
            yield f"{annotations}: qid {row.qid!r}: {error}"


def describe_store(folder: Path) -> dict[str, object]:
    """Description of a store, as names and values for display.

    Raises:
        FeatureError: the folder is not a complete store.
    """
    manifest, rows = read_manifest(folder), read_index(folder)
    info = manifest.info
    statuses = Counter(row.entry.status for row in rows)
    facts: dict[str, object] = {
        "stream": f"{info.stream} ({info.modality}, keyed by {info.keyed_by})",
        "rows": f"{sum(shard.rows for shard in manifest.shards)} of {info.dim} float16",
        "keys": ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())),
        "shards": len(manifest.shards),
        "clip length": "-" if info.clip_len_s is None else f"{info.clip_len_s} s",
        "normalised": info.normalised,
        "fingerprint": digest_of(info.fingerprint),
    }
    facts |= {f"  {name}": value for name, value in sorted(info.fingerprint.items())}
    for row in rows:
        if row.entry.status != "ok":
            facts[f"{row.entry.status} {row.entry.key}"] = row.entry.reason
    return facts


def corpus_rows(folder: Path) -> list[Annotation]:
    """The records of ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``, as far as present.

    Then those of ``pretrain.jsonl`` and ``pretrain_val.jsonl``, without ratings; the stage `corpus`
    lists the invalid ones, which are left out.

    Raises:
        DataError: none of the first three exists, or a record of theirs is invalid.
    """
    files = [folder / f"{split}.jsonl" for split in SPLITS]
    present = [path for path in files if path.exists() and path.stat().st_size]
    if not present:
        names = ", ".join(path.name for path in files)
        hint = "mrmodel data convert writes them from published annotation files"
        raise DataError(f"has none of {names}; {hint}", file=folder)
    clip_len_s = corpus_clip_len(folder) or DEFAULT_CLIP_LEN_S
    rows = [row for path in present for row in read_annotations(path, clip_len_s)]
    for path in (folder / f"{name}.jsonl" for name in PRETRAINING):
        if path.exists():
            rows += scan_annotations(path, clip_len_s, with_ratings=False).rows
    return rows


def corpus_clip_len(folder: Path) -> float | None:
    """Seconds of a clip of a converted data set; None where the folder does not record it."""
    path = folder / RECORD
    if not path.exists():
        return None
    length = read_object(path).get("clip_len_s")
    if not isinstance(length, int | float) or not MIN_CLIP_LEN_S <= length <= MAX_CLIP_LEN_S:
        raise DataError(f"is no record of a conversion: clip_len_s = {length!r}", file=path)
    return float(length)
