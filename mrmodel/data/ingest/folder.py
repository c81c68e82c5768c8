"""Imports a user's videos (or imported features) and annotations as a corpus.

Bad records and videos are left out and listed in corpus.json.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from mrmodel.data.annotations import (
    SCORED_SPLITS,
    Unscorable,
    scan_annotations,
    truth_problem,
    without_ratings,
)
from mrmodel.data.ingest.summary import (
    PRETRAINING,
    SPLITS,
    CorpusSummary,
    refuse_foreign_videos,
)
from mrmodel.data.ingest.videos import VideoLibrary
from mrmodel.errors import DataError
from mrmodel.features.keys import text_key
from mrmodel.features.manifest import MANIFEST_FILE
from mrmodel.features.store import FeatureStore
from mrmodel.files import write_jsonl, write_text
from mrmodel.lines import json_lines
from mrmodel.progress import Reporter, track
from mrmodel.types import Annotation


class FeatureLibrary:
    """All stores of a folder.

    Args:
        folder: holds one store per stream; without any, every record is valid.

    Raises:
        FeatureError: a store is damaged.
    """

    def __init__(self, folder: Path) -> None:
        manifests = sorted(folder.glob(f"*/{MANIFEST_FILE}"))
        self._stores = [FeatureStore(path.parent) for path in manifests]

    @property
    def has_videos(self) -> bool:
        """Whether there are video features, so that the videos themselves are not needed."""
        return any(store.info.modality == "video" for store in self._stores)

    def problem(self, row: Annotation) -> str | None:
        """Why a record cannot be used: its video or query lacks features in a store."""
        for store in self._stores:
            if store.info.modality == "video":
                if row.vid not in store:
                    return f"no features of its video {row.vid!r} in {store.folder}"
            elif text_key(row.query) not in store:
                return f"no features of its query in {store.folder}"
        return None


CAPTIONS = "captions.jsonl"
REQUIRED_SPLITS = ("train", "val")
NO_VIDEOS = ".none"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class IngestedTable:
    """The kept records of one file, and the stems of their videos.

    Records are unchanged, except that video ids are written as the names of the files.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    videos: set[str] = field(default_factory=set)
    rejected: list[DataError] = field(default_factory=list)
    warnings: list[DataError] = field(default_factory=list)


def import_folder(
    folder: Path,
    clip_len_s: float,
    out: Path,
    reporter: Reporter,
    imports: Path | None = None,
    pretrain_ratings: bool = True,
    unscorable: Unscorable | None = None,
    *,
    every_video: bool = False,
) -> CorpusSummary:
    """Import ``folder`` into `out`, with the same files as `render.render_corpus` writes.

    The folder holds ``videos/``, ``train.jsonl``, ``val.jsonl`` and, optionally, ``test.jsonl``,
    ``captions.jsonl`` (InternVid format, with file names as ids), ``pretrain.jsonl`` and
    ``pretrain_val.jsonl`` (annotations to pre-train on). A missing optional file is written empty.
    Without a test split, metrics are reported on val. If all features are imported, ``videos/`` may
    be missing; captions are left out then.

    Args:
        folder: the user's folder; read-only.
        clip_len_s: seconds of one clip, the unit of ``relevant_clip_ids``.
        out: target of the corpus; its videos folder must not hold other videos.
        reporter: notified of every checked record and every copied video.
        imports: folder of imported feature stores; a record needs features in each of them.
        pretrain_ratings: False: of ``pretrain.jsonl`` and ``pretrain_val.jsonl`` only the windows
            are used, as the published pre-trainings do.
        unscorable: as in `check.check_file`.
        every_video: also copy readable videos that no record names.

    Raises:
        DataError: no videos folder, no train or val split, a split without a usable record, or
            `out` holds the videos of another corpus.
    """
    features = FeatureLibrary(imports) if imports is not None else None
    spared = features is not None and features.has_videos and not (folder / "videos").is_dir()
    library = None if spared else VideoLibrary(folder / "videos")
    tables = {"captions": _read_captions(folder / CAPTIONS, library, reporter)}
    for split in (*SPLITS, *PRETRAINING):
        path = folder / f"{split}.jsonl"
        if path.exists():
            usable = _Usable(library, features, unscorable if split in SCORED_SPLITS else None)
            with_ratings = pretrain_ratings or split in SPLITS
            tables[split] = _read_split(path, clip_len_s, usable, reporter, with_ratings)
        elif split in REQUIRED_SPLITS:
            raise DataError("is missing; a folder needs train.jsonl and val.jsonl", file=path)
    names = set[str]().union(*(table.videos for table in tables.values()))
    if every_video and library is not None:
        names |= library.usable()
    video_bytes = _bring_videos(library, names, out, reporter)
    for split in (*SPLITS, *PRETRAINING):
        write_jsonl(out / f"{split}.jsonl", tables.get(split, IngestedTable()).rows)
    write_jsonl(out / CAPTIONS, tables["captions"].rows)
    summary = _summary(tables, video_bytes)
    summary.write(out, _details(tables, library, names))
    if summary.rejected:
        log.warning("%d rows left out, see %s", summary.rejected, out / "corpus.json")
    return summary


@dataclass(frozen=True, slots=True)
class _Usable:
    """What a record must have: a video, features, or both, and metrics; None: not required."""

    library: VideoLibrary | None
    features: FeatureLibrary | None
    unscorable: Unscorable | None

    def problem(self, row: Annotation, clip_len_s: float) -> str | None:
        """Why a record cannot be used; None if it can."""
        found = truth_problem(row)
        if found is None and self.library is not None:
            found = self.library.row_problem(row, clip_len_s)
        if found is None and self.features is not None:
            found = self.features.problem(replace(row, vid=self.vid_of(row.vid)))
        return found

    def vid_of(self, vid: str) -> str:
        """A video id of a record, written as the name of its file."""
        return vid if self.library is None else self.library.vid_of(vid)

    def name_of(self, vid: str) -> str:
        """Name of the video of a record."""
        return vid if self.library is None else self.library.name_of(vid)


def _bring_videos(
    library: VideoLibrary | None, names: set[str], out: Path, reporter: Reporter
) -> int:
    """Copy the videos; returns their size in bytes."""
    refuse_foreign_videos(out, [] if library is None else library.file_names(names))
    if library is not None:
        return library.copy(names, out / "videos", reporter)
    # Later stages depend on the folder, and DVC does not track empty ones.
    write_text(out / "videos" / NO_VIDEOS, "")
    return 0


def _read_split(
    path: Path, clip_len_s: float, usable: _Usable, reporter: Reporter, with_ratings: bool
) -> IngestedTable:
    scan = scan_annotations(path, clip_len_s, with_ratings)
    table = IngestedTable(rejected=scan.errors, warnings=scan.warnings)
    records = _records(path) if scan.rows else {}
    pairs = list(zip(scan.lines, scan.rows, strict=True))
    good = []
    for line, row in track(pairs, reporter, f"check {path.name}", len(pairs)):
        problem = usable.problem(row, clip_len_s)
        if problem is None:
            good.append((line, row))
        else:
            table.rejected.append(DataError(problem, file=path, line=line, qid=row.qid))
    bad = {} if usable.unscorable is None else usable.unscorable([row for _, row in good])
    for place, (line, row) in enumerate(good):
        if place in bad:
            table.rejected.append(DataError(bad[place], file=path, line=line, qid=row.qid))
            continue
        record = records[line] if with_ratings else without_ratings(records[line])
        table.rows.append(record | {"vid": usable.vid_of(row.vid)})
        table.videos.add(usable.name_of(row.vid))
    if not table.rows:
        first = table.rejected[0]
        rule = f"no usable row; the first is refused because: {first.rule}"
        raise DataError(rule, file=path, line=first.line, qid=first.qid)
    table.rejected.sort(key=lambda error: error.line or 0)
    return table


def _records(path: Path) -> dict[int, dict[str, Any]]:
    """Line -> object, of the lines that hold one."""
    lines = json_lines(path)
    return {line: row for line, _, row in lines if not isinstance(row, DataError)}


def _read_captions(path: Path, library: VideoLibrary | None, reporter: Reporter) -> IngestedTable:
    """The rows whose video exists; the InterVid-MR stage checks everything else."""
    table = IngestedTable()
    if not path.exists():
        return table
    if library is None:
        rule = "left out: captions need videos, of which features are extracted"
        table.rejected.append(DataError(rule, file=path))
        return table
    lines = list(json_lines(path))
    for line, _, row in track(lines, reporter, f"check {path.name}", len(lines)):
        if isinstance(row, DataError):
            table.rejected.append(row)
            continue
        vid = row.get("YoutubeID")
        if not isinstance(vid, str):
            rule = "expected a JSON object with the video's name as 'YoutubeID'"
            table.rejected.append(DataError(rule, file=path, line=line))
            continue
        problem = library.problem(vid, 0.0)
        if problem is not None:
            table.rejected.append(DataError(problem, file=path, line=line, qid=vid))
            continue
        table.rows.append(row | {"YoutubeID": library.vid_of(vid)})
        table.videos.add(library.name_of(vid))
    return table


def _summary(tables: dict[str, IngestedTable], video_bytes: int) -> CorpusSummary:
    return CorpusSummary(
        source="folder",
        reported_split="test" if "test" in tables else "val",
        videos={name: len(videos) for name, videos in _videos_by_purpose(tables).items()},
        queries={name: len(table.rows) for name, table in tables.items() if name != "captions"},
        captions=len(tables["captions"].rows),
        rejected=sum(len(table.rejected) for table in tables.values()),
        video_bytes=video_bytes,
    )


def _videos_by_purpose(tables: dict[str, IngestedTable]) -> dict[str, set[str]]:
    """The videos of each split; those of captions and of annotated rows to pre-train on as one."""
    pretraining = ("captions", *PRETRAINING)
    found = {"pretrain": set[str]().union(*(tables[n].videos for n in pretraining if n in tables))}
    return found | {split: tables[split].videos for split in SPLITS if split in tables}


def _details(
    tables: dict[str, IngestedTable], library: VideoLibrary | None, names: set[str]
) -> dict[str, Any]:
    failures = {} if library is None else library.failures
    videos = _videos_by_purpose(tables)
    shared = {
        f"{first}, {second}": sorted(videos[first] & videos[second])
        for first, second in combinations(videos, 2)
    }
    return {
        "rejected_rows": _as_json(tables, "rejected"),
        "warnings": _as_json(tables, "warnings"),
        "rejected_videos": {
            name: f"{error.code}: {error.detail}" for name, error in failures.items()
        },
        "unused_videos": [] if library is None else library.unused(names),
        "videos_in_two_splits": {pair: vids for pair, vids in shared.items() if vids},
    }


def _as_json(tables: dict[str, IngestedTable], kind: str) -> list[dict[str, object]]:
    return [
        {
            "file": Path(error.file).name if error.file else None,
            "line": error.line,
            "id": error.qid,
            "rule": error.rule,
        }
        for table in tables.values()
        for error in getattr(table, kind)
    ]
