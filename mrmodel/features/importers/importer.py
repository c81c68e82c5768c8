"""`mrmodel features import`: converts a published archive to feature stores, file by file.

One file is in memory at a time, and an item without rows does not stop the import. A store takes
the place of an earlier one when it is complete. After a killed or failed import the earlier one is
as it was, and the next import starts over and produces the same bytes.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrmodel.components import LAYOUTS
from mrmodel.errors import FeatureError, FeatureMismatch
from mrmodel.features.importers.archive import Contents, find_folder, list_contents, read_features
from mrmodel.features.importers.layouts import ImportedStream, Layout
from mrmodel.features.importers.readers import Array, UnusableFile, WordVectors
from mrmodel.features.index import INDEX_FILE, IndexEntry
from mrmodel.features.keys import normalise_query, text_key
from mrmodel.features.manifest import (
    MANIFEST_FILE,
    Manifest,
    StreamInfo,
    read_manifest,
    stream_fingerprint,
)
from mrmodel.features.store import Half, to_stored
from mrmodel.features.writer import SHARD_BYTES, STORE_FILES, FeatureWriter
from mrmodel.files import atomic_path, replaced_folder, sha256_of, write_json
from mrmodel.progress import NullReporter, Reporter
from mrmodel.text import first_of
from mrmodel.types import Annotation

log = logging.getLogger(__name__)

RECORD = "import.json"
_SHOWN = 20
# Rows of one sentence under two ids may differ by float16 rounding.
_SAME = 2e-2
# Tolerance of the length of rows that count as of length 1.
_UNIT = 1e-3
_FIRST_CHANNELS = 64


@dataclass(frozen=True, slots=True)
class FeatureImportRequest:
    """What to import.

    Attributes:
        layout: entry of `components.LAYOUTS`.
        source: the unpacked archive.
        output: folder that receives one store per stream.
        streams: only these; empty: all in the archive.
        clip_len_s: seconds of a row; None: the layout's.
        word_vectors: file with word vectors, for layouts whose archive has no text.
        max_failed_share: largest fraction of wanted ids without rows; above it the import fails.
        strict: files of unknown ids make it fail, too.
        shard_bytes: largest file of a store.
    """

    layout: str
    source: Path
    output: Path
    streams: tuple[str, ...] = ()
    clip_len_s: float | None = None
    word_vectors: Path | None = None
    max_failed_share: float = 0.0
    strict: bool = False
    shard_bytes: int = SHARD_BYTES


@dataclass(slots=True)
class StreamReport:
    """Import result of one stream.

    Attributes:
        stream: its name.
        store: the folder that was written.
        n_items, n_rows: number of stored items and rows.
        n_unit_rows: rows of length 1.
        row_counts: number of items per number of rows.
        problems: id -> (code, detail) of every wanted id without rows.
        unknown: files whose id is not wanted.
        dtypes: number of items per source dtype.
        differing: sentences whose rows differ between their ids.
    """

    stream: str
    store: Path
    n_items: int = 0
    n_rows: int = 0
    n_unit_rows: int = 0
    row_counts: Counter[int] = field(default_factory=Counter)
    problems: dict[str, tuple[str, str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    dtypes: Counter[str] = field(default_factory=Counter)
    differing: list[str] = field(default_factory=list)


def import_archive(
    request: FeatureImportRequest, rows: Sequence[Annotation], reporter: Reporter | None = None
) -> list[StreamReport]:
    """Import all streams of an archive, or the requested ones.

    Args:
        request: see `FeatureImportRequest`.
        rows: the annotated queries whose videos and sentences need features.
        reporter: notified of every item.

    Raises:
        UnknownNameError: no such layout.
        FeatureError: the archive lacks a stream, or too many ids have no rows; lists them.
    """
    layout: Layout = LAYOUTS.get(request.layout)
    if not request.source.is_dir():
        raise FeatureError(f"{request.source}: not a folder; unpack the archive first (tar -xf)")
    reports = []
    for stream in _chosen(layout, request):
        clip_len_s = _clip_length(layout, request) if stream.modality == "video" else None
        reports.append(_import(stream, clip_len_s, request, rows, reporter or NullReporter()))
    return reports


def _chosen(layout: Layout, request: FeatureImportRequest) -> list[ImportedStream]:
    known = {stream.name: stream for stream in layout.streams}
    for name in request.streams:
        if name not in known:
            rule = f"the layout {request.layout} has no stream {name!r}"
            raise FeatureError(f"{rule} (it has {', '.join(known)})")
        if known[name].words and request.word_vectors is None:
            raise FeatureError(f"{name} needs a file of word vectors: --word-vectors FILE")
    wanted = [known[name] for name in request.streams] or list(layout.streams)
    there = [stream for stream in wanted if request.streams or _is_there(stream, request)]
    if not there:
        places = ", ".join(folder for stream in wanted for folder in stream.folders)
        rule = f"holds none of the folders of the layout {request.layout}"
        raise FeatureError(f"{request.source}: {rule}: {places}")
    return there


def _is_there(stream: ImportedStream, request: FeatureImportRequest) -> bool:
    if stream.words:
        return request.word_vectors is not None
    there = find_folder(stream, request.source) is not None
    if not there:
        log.warning("%s: no %s, %s left out", request.source, stream.folders[0], stream.name)
    return there


def _clip_length(layout: Layout, request: FeatureImportRequest) -> float:
    found = request.clip_len_s or layout.clip_len_s
    if found is None:
        rule = "does not say how many seconds a row stands for; give --clip-len"
        raise FeatureError(f"the layout {request.layout} {rule}")
    return found


def _import(
    stream: ImportedStream,
    clip_len_s: float | None,
    request: FeatureImportRequest,
    rows: Sequence[Annotation],
    reporter: Reporter,
) -> StreamReport:
    report = StreamReport(stream.name, request.output / stream.name)
    wanted = _wanted(stream, rows)
    source = _Words(stream, request, rows) if stream.words else _Files(stream, request, wanted)
    report.unknown = sorted(str(place) for place in source.contents.unknown)
    info = StreamInfo(
        stream=stream.name,
        dim=stream.dim,
        modality=stream.modality,
        keyed_by="vid" if stream.modality == "video" else "text",
        clip_len_s=clip_len_s,
        normalised=source.contents.normalised,
        fingerprint=stream_fingerprint(
            {"imported": stream.name, "normalised": source.contents.normalised}, clip_len_s
        ),
    )
    with (
        replaced_folder(report.store, *STORE_FILES, RECORD) as folder,
        FeatureWriter(folder, info, request.shard_bytes) as writer,
    ):
        for entry, stored in _stored(wanted, _of_several(wanted), source, report, reporter):
            writer.add(entry, stored)
        _judge(report, request, len(wanted))
        write_json(folder / RECORD, _record(report, request))
    return report


def _wanted(stream: ImportedStream, rows: Sequence[Annotation]) -> dict[str, list[str]]:
    """Key of the store -> ids of the archive that have its rows, those of queries first."""
    if stream.modality == "video":
        return {vid: [vid] for vid in sorted({row.vid for row in rows})}
    ids: dict[str, set[str]] = {}
    for row in rows:
        ids.setdefault(text_key(row.query), set()).add(str(row.qid))
    wanted = {key: sorted(ids[key]) for key in sorted(ids)}
    if stream.by_video:
        texts: dict[str, set[str]] = {}
        for row in rows:
            texts.setdefault(row.vid, set()).add(text_key(row.query))
        for vid in sorted(texts.keys() - {str(row.qid) for row in rows}):
            if len(texts[vid]) == 1:
                wanted[texts[vid].pop()].append(vid)
    return wanted


def _of_several(wanted: Mapping[str, list[str]]) -> set[str]:
    """Ids of two different sentences, e.g. of two splits that both count from 1."""
    keys = Counter(name for ids in wanted.values() for name in ids)
    return {name for name, count in keys.items() if count > 1}


class _Files:
    """Rows read from the archive's files."""

    def __init__(
        self, stream: ImportedStream, request: FeatureImportRequest, wanted: Mapping[str, list[str]]
    ) -> None:
        self._stream, self.nothing = stream, np.zeros((0, stream.dim), np.float16)
        known = {name for ids in wanted.values() for name in ids}
        self.contents = list_contents(stream, request.source, known)
        if not self.contents.places:
            example = next(iter(sorted(map(str, self.contents.unknown))), "no file")
            rule = f"none of the {len(known)} ids of the annotations is in the archive"
            raise FeatureError(f"{stream.name}: unknown_id: {rule}, which has e.g. {example}")

    def rows_of(self, name: str) -> Array:
        if name in self.contents.repeated:
            rule = f"{self.contents.repeated[name]} is there beside another file of this id"
            raise UnusableFile("duplicate_id", rule)
        if name not in self.contents.places:
            raise UnusableFile("missing_id", "the archive has no file of this id")
        return read_features(self._stream, self.contents.places[name])


class _Words:
    """Rows looked up in the word vectors."""

    def __init__(
        self, stream: ImportedStream, request: FeatureImportRequest, rows: Sequence[Annotation]
    ) -> None:
        self.contents, self.nothing = Contents(), np.zeros((0, stream.dim), np.float16)
        self._queries = {str(row.qid): normalise_query(row.query) for row in rows}
        if request.word_vectors is None:
            raise FeatureError(f"{stream.name} needs a file of word vectors: --word-vectors FILE")
        queries = list(self._queries.values())
        self._vectors = WordVectors.read(request.word_vectors, stream.dim, queries)

    def rows_of(self, name: str) -> Array:
        return self._vectors.rows(self._queries[name])


def _stored(
    wanted: Mapping[str, list[str]],
    unclear: set[str],
    source: _Files | _Words,
    report: StreamReport,
    reporter: Reporter,
) -> Iterator[tuple[IndexEntry, Half]]:
    """Entries and rows in key order; problems are added to the report."""
    reporter.start(f"import {report.stream}", len(wanted))
    try:
        for key, ids in wanted.items():
            reporter.advance()
            name = ids[0]
            try:
                if unclear.issuperset(ids):
                    name = f"{ids[0]} ({key})"
                    rule = "other sentences have this qid too; number all splits as one"
                    raise UnusableFile("duplicate_id", rule)
                own = [one for one in ids if one not in unclear]
                stored, dtype = _rows_of_any(own, source, report)
            except UnusableFile as error:
                report.problems[name] = (error.code, error.detail)
                yield IndexEntry(key, 0, status="failed", reason=str(error)), source.nothing
                continue
            report.n_items += 1
            report.n_rows += len(stored)
            report.n_unit_rows += _count_unit(stored)
            report.row_counts[len(stored)] += 1
            report.dtypes[dtype] += 1
            yield IndexEntry(key, len(stored)), stored
    finally:
        reporter.finish()


def _rows_of_any(ids: list[str], source: _Files | _Words, report: StreamReport) -> tuple[Half, str]:
    """Rows of the first id that has some, and their type in the archive.

    Differences between ids are added to the report.
    """
    first: Array | None = None
    stored = source.nothing
    problem: UnusableFile | None = None
    for name in ids:
        try:
            rows = source.rows_of(name)
            half = _to_half(rows)
        except (MemoryError, RecursionError) as error:
            rule = f"cannot be read in this memory ({type(error).__name__})"
            problem = problem or UnusableFile("too_large", rule)
            continue
        except UnusableFile as error:
            # A sentence may have many ids; the archive needs to hold only one.
            if problem is None or problem.code == "missing_id":
                problem = error
            continue
        if first is None:
            first, stored = rows, half
        elif rows.shape != first.shape or not np.allclose(rows, first, rtol=_SAME, atol=_SAME):
            report.differing.append(name)
    if first is None:
        raise problem or UnusableFile("missing_id", "the archive has no file of this id")
    return stored, str(first.dtype)


def _to_half(rows: Array) -> Half:
    try:
        return to_stored(rows)
    except FeatureError as error:
        code = "beyond_float16" if np.isfinite(rows).all() else "not_finite"
        raise UnusableFile(code, str(error)) from None


def _count_unit(rows: Half) -> int:
    """Number of rows of length 1."""
    # Conversion to float32 is slow; most rows of another length are longer in the first channels.
    short = _lengths(rows[:, :_FIRST_CHANNELS]) <= 1 + _UNIT
    return int((np.abs(_lengths(rows[short]) - 1) <= _UNIT).sum())


def _lengths(rows: Half) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.linalg.norm(rows.astype(np.float32), axis=1)
    return found


def _judge(report: StreamReport, request: FeatureImportRequest, total: int) -> None:
    allowed = request.max_failed_share * total
    if len(report.problems) > allowed:
        shown = [f"{name}: {code}: {detail}" for name, (code, detail) in report.problems.items()]
        rule = f"more than the allowed share {request.max_failed_share}"
        raise FeatureError(
            f"{report.stream}: {len(shown)} of {total} items give no rows, {rule}: "
            f"{first_of(shown, _SHOWN)}"
        )
    if request.strict and report.unknown:
        rule = f"unknown_id: {len(report.unknown)} files are of no annotated id"
        raise FeatureError(f"{report.stream}: {rule}, e.g. {report.unknown[0]}")


def _record(report: StreamReport, request: FeatureImportRequest) -> dict[str, Any]:
    """Content of a store's import.json: how it was imported."""
    return {
        "layout": request.layout,
        "items": report.n_items,
        "rows": report.n_rows,
        "unit_rows": report.n_unit_rows,
        "items_by_rows": {str(rows): items for rows, items in sorted(report.row_counts.items())},
        "dtypes": dict(sorted(report.dtypes.items())),
        "unknown_files": len(report.unknown),
        "differing": report.differing,
        "problems": {
            name: {"code": code, "detail": detail}
            for name, (code, detail) in report.problems.items()
        },
    }


def format_report(report: StreamReport) -> str:
    """The report of a stream as text."""
    lines = [f"{name}: {code}: {detail}" for name, (code, detail) in report.problems.items()]
    types = ", ".join(f"{count} {name}" for name, count in sorted(report.dtypes.items()))
    lines.append(f"{report.store}: {report.n_rows} rows of {report.n_items} items ({types})")
    if report.row_counts:
        low, high = min(report.row_counts), max(report.row_counts)
        spread = f"{low} to {high} rows per item, {high} in {report.row_counts[high]} items"
        shown = f"{high} rows in every item" if low == high else spread
        lines.append(f"  {shown}; {report.n_unit_rows} rows of length 1")
    if report.unknown:
        rule = f"unknown_id: {len(report.unknown)} files are of no annotated id"
        lines.append(f"  {rule}, e.g. {report.unknown[0]}")
    if report.differing:
        shown = ", ".join(report.differing[:3])
        rule = f"{len(report.differing)} queries have other rows than an equal sentence"
        lines.append(f"  {rule}, which were left out: {shown}")
    return "\n".join(lines)


def copy_store(source: Path, target: Path, stream: str, clip_len_s: float) -> Manifest:
    """Copy a store file by file, the manifest last.

    Not linked, because DVC deletes a stage's outputs and makes tracked files read-only.

    Args:
        source: the store.
        target: the new folder.
        stream: the stream that it must hold.
        clip_len_s: required seconds per row of a video stream.

    Raises:
        FeatureError: it is not a finished store, or a shard is damaged.
        FeatureMismatch: it holds another stream, or rows of another length.
    """
    manifest = read_manifest(source)
    info = manifest.info
    if info.stream != stream:
        raise FeatureMismatch(f"{source}: holds the stream {info.stream}, not {stream}")
    if info.clip_len_s is not None and abs(info.clip_len_s - clip_len_s) > 1e-6:
        rule = f"a row stands for {info.clip_len_s:g} s, features.clip_len_s is {clip_len_s:g}"
        raise FeatureMismatch(f"{source}: {rule}")
    (target / MANIFEST_FILE).unlink(missing_ok=True)
    for shard in manifest.shards:
        _copy(source / shard.file, target / shard.file)
        if sha256_of(target / shard.file) != shard.sha256:
            rule = f"SHA-256 differs from the manifest's {shard.sha256}; import it again"
            raise FeatureError(f"{source / shard.file}: {rule}")
    for name in (INDEX_FILE, RECORD, MANIFEST_FILE):
        if (source / name).exists():
            _copy(source / name, target / name)
    return manifest


def _copy(source: Path, target: Path) -> None:
    try:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
    except FileNotFoundError:
        raise FeatureError(f"{source}: is missing; import the stream again") from None
