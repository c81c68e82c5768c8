"""Shards of an extraction: results of some videos, made on any machine, packed as a tar file.

Merged into the work folder of the main extraction, they look like the results of an interrupted
run, so the store has the same bytes. Equal results give an equal tar file. On reading, the
manifest is checked against its own digest and the rows against the manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from mrmodel.errors import FeatureError
from mrmodel.features.extraction.job_runner import (
    ExtractionJob,
    ExtractionSettings,
    extraction_plan,
    require_plan,
    video_work,
)
from mrmodel.features.extraction.jobs import VideoJob
from mrmodel.features.extraction.partial_results import (
    PartialResults,
    VideoFeatures,
    VideoNote,
    file_stem,
)
from mrmodel.files import atomic_path, digest_of, sha256_of
from mrmodel.progress import Reporter

_MANIFEST = "manifest.json"
_VERSION: Literal[1] = 1


class _Manifest(BaseModel):
    """manifest.json: `digest` covers all other fields; `rows` maps name -> SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    plan: dict[str, Any]
    notes: list[VideoNote]
    rows: dict[str, str]


@dataclass(frozen=True, slots=True)
class ShardTar:
    """An open shard: the notes of its results, and their rows on demand."""

    path: Path
    notes: list[VideoNote]
    _rows: dict[str, str]
    _content: _Content

    def is_in(self, folder: PartialResults, note: VideoNote) -> bool:
        """Whether the folder already holds identical rows."""
        path = folder.rows_path(note.name)
        return path.exists() and sha256_of(path) == self._rows.get(note.name)

    def load(self, note: VideoNote) -> VideoFeatures:
        """The result of a note that is not a failure.

        Raises:
            FeatureError: its rows are missing or damaged.
        """
        content = self._content.read(_rows_name(note.name))
        if hashlib.sha256(content).hexdigest() != self._rows.get(note.name):
            raise FeatureError(f"{self.path}: damaged: the rows of {note.name!r} have changed")
        return VideoFeatures(note.entries, np.load(io.BytesIO(content)))


def write_tar(
    target: Path, plan: Mapping[str, Any], notes: list[VideoNote], folder: PartialResults
) -> None:
    """Pack the results of these notes, in their order, atomically."""
    kept = [note for note in notes if note.failure is None]
    body = {
        "version": _VERSION,
        "plan": dict(plan),
        "notes": [_without_time(note) for note in notes],
        "rows": {note.name: sha256_of(folder.rows_path(note.name)) for note in kept},
    }
    manifest = json.dumps(
        {"digest": digest_of(body), **body}, ensure_ascii=False, allow_nan=False
    ).encode()
    with atomic_path(target) as temporary, tarfile.open(temporary, "w") as tar:
        tar.addfile(_plain(_MANIFEST, len(manifest)), io.BytesIO(manifest))
        for note in kept:
            path = folder.rows_path(note.name)
            with path.open("rb") as file:
                tar.addfile(_plain(_rows_name(note.name), path.stat().st_size), file)


@contextmanager
def read_tar(path: Path, plan: Mapping[str, Any]) -> Iterator[ShardTar]:
    """Open a tar file of `write_tar`.

    Raises:
        FeatureError: it is damaged, or was made under another plan.
    """
    try:
        tar = tarfile.open(path, "r:")  # noqa: SIM115 - closed below, even on errors
    except (tarfile.TarError, OSError) as error:
        raise FeatureError(f"{path}: not a shard of an extraction: {error}") from error
    with tar:
        content = _Content(tar, path)
        manifest = _read_manifest(content, path)
        require_plan(str(path), manifest.plan, plan)
        yield ShardTar(path, manifest.notes, manifest.rows, content)


class _Content:
    """Members of a tar by name; `tarfile` would search its list for each lookup."""

    def __init__(self, tar: tarfile.TarFile, path: Path) -> None:
        self._tar, self._path = tar, path
        try:
            self._members = {member.name: member for member in tar.getmembers()}
        except (tarfile.TarError, OSError) as error:
            raise FeatureError(f"{path}: damaged: {error}") from error

    def read(self, name: str) -> bytes:
        member = self._members.get(name)
        file = None if member is None else self._tar.extractfile(member)
        if file is None:
            raise FeatureError(f"{self._path}: incomplete: there is no {name}")
        try:
            return file.read()
        except (tarfile.TarError, OSError) as error:
            raise FeatureError(f"{self._path}: damaged: {name}: {error}") from error


def _read_manifest(content: _Content, path: Path) -> _Manifest:
    try:
        body = json.loads(content.read(_MANIFEST))
        if body.pop("digest") != digest_of(body):
            raise FeatureError(f"{path}: damaged: its manifest has changed")
        return _Manifest.model_validate(body)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise FeatureError(f"{path}: damaged: its manifest cannot be read: {what}") from error


def _without_time(note: VideoNote) -> dict[str, Any]:
    """A note as JSON; a modification time has no meaning on another machine."""
    return asdict(note) | {"source": {"bytes": note.source["bytes"]}}


def _rows_name(name: str) -> str:
    return f"rows/{file_stem(name)}.npy"


def _plain(name: str, size: int) -> tarfile.TarInfo:
    """A member without owner and time."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """The results of a shard's videos.

    Attributes:
        n_items, n_ok, n_partial, n_failed: number of videos, in total and by status.
        n_resumed: videos that were finished before this run.
        n_rows: rows in the results.
        wall_s: seconds of this run.
        problems: id -> reason, of every partial and failed video.
        passing: ids that failed for a transient reason.
    """

    n_items: int
    n_ok: int
    n_partial: int
    n_failed: int
    n_resumed: int
    n_rows: int
    wall_s: float
    problems: dict[str, str]
    passing: list[str]


def extract_shard(
    videos: Mapping[str, Path],
    encoder_name: str,
    clip_len_s: float,
    target: Path,
    settings: ExtractionSettings,
    reporter: Reporter | None = None,
) -> ShardSummary:
    """Extract some videos and pack the results into the tar file `target`.

    Results stay in `settings.work_dir`, from which a killed shard resumes. Failed videos are
    packed as such; the limit on failures applies to the whole extraction only.

    Args:
        videos: video id -> file, of this shard alone.
        encoder_name: entry of `components.ENCODERS`, a video encoder.
        clip_len_s: seconds of one row.
        target: the tar file to write.
        settings: see `ExtractionSettings`.
        reporter: notified of every finished video.

    Raises:
        FeatureError: a video is missing or cannot be read from disk.
    """
    started = time.perf_counter()
    _require_there(videos)
    work = video_work(videos, encoder_name, clip_len_s, settings, reporter)
    work.run(retry_transient=True)
    notes = list(_notes(work))
    write_tar(target, extraction_plan(work.info, settings.limits), notes, work.folder)
    return _summary(notes, work.n_resumed, time.perf_counter() - started)


def merge_shard(
    tar: Path,
    videos: Mapping[str, Path],
    plan: Mapping[str, Any],
    folder: PartialResults,
) -> ShardSummary:
    """Copy the results of a shard into the work folder of an extraction.

    Nothing is copied before all of its videos have been compared with the local files; results
    copied by an earlier call are left alone.

    Args:
        tar: what `extract_shard` wrote.
        videos: video id -> file, of exactly this shard.
        plan: `job_runner.extraction_plan` of the extraction.
        folder: its work folder, opened with that plan.

    Raises:
        FeatureError: the tar file is damaged, was made under another plan or from other files, or
            holds other videos than these; or a video is missing. The message says which.
    """
    started = time.perf_counter()
    _require_there(videos)
    with read_tar(tar, plan) as shard:
        notes = {note.name: note for note in shard.notes}
        _require_keys(tar, set(notes), set(videos))
        jobs = [VideoJob.of(vid, path) for vid, path in sorted(videos.items())]
        left = [job for job in jobs if not _is_merged(folder, job, shard, notes[job.name])]
        _require_sources(tar, left, notes)
        for job in left:
            note, source = notes[job.name], dict(job.source)
            if note.failure:
                folder.save_failure(job.name, note.failure, source, note.sha256)
            else:
                folder.save(job.name, shard.load(note), source, note.sha256)
        n_resumed = len(jobs) - len(left)
        return _summary(shard.notes, n_resumed, time.perf_counter() - started)


def _require_there(videos: Mapping[str, Path]) -> None:
    """Raise on missing files, which must not be stored as failed videos."""
    for vid, path in sorted(videos.items()):
        if not path.exists():
            raise FeatureError(f"{vid}: {path} is not checked out")


def _notes(work: ExtractionJob) -> Iterator[VideoNote]:
    for job in work.jobs:
        assert isinstance(job, VideoJob)
        failure = work.failures.get(job.name)
        if failure:
            yield VideoNote(job.name, dict(job.source), _identity(job.path), failure=failure)
        else:
            note = work.folder.find(job.name, dict(job.source))
            assert note is not None  # run() has just made it
            yield note


def _identity(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise FeatureError(f"{path}: cannot be read: {error}") from error


def _is_merged(folder: PartialResults, job: VideoJob, shard: ShardTar, note: VideoNote) -> bool:
    found = folder.find(job.name, dict(job.source), job.path)
    if found is None or (found.entries, found.failure) != (note.entries, note.failure):
        return False
    # Equal notes do not imply equal rows: other code may have computed them.
    return note.failure is not None or shard.is_in(folder, note)


def _require_keys(tar: Path, found: set[str], expected: set[str]) -> None:
    for what, keys in (("lacks", expected - found), ("holds also", found - expected)):
        if keys:
            raise FeatureError(
                f"{tar}: {what} the video {min(keys)!r} ({len(keys)} such); another shard, or one "
                "of another list of videos"
            )


def _require_sources(tar: Path, jobs: list[VideoJob], notes: Mapping[str, VideoNote]) -> None:
    """Compare the local files with those that the shard read; most of the time is hashing."""
    for job in jobs:
        found, read = dict(job.source)["bytes"], notes[job.name].source["bytes"]
        if found != read:
            raise FeatureError(
                f"{tar}: {job.name!r} was made of {read} bytes, but {job.path} has {found}"
            )
    with ThreadPoolExecutor() as pool:
        for job, digest in zip(jobs, pool.map(sha256_of, [j.path for j in jobs]), strict=True):
            if digest != notes[job.name].sha256:
                raise FeatureError(
                    f"{tar}: {job.name!r} was made of a file with SHA-256 "
                    f"{notes[job.name].sha256}, but {job.path} has {digest}"
                )


def _summary(notes: list[VideoNote], n_resumed: int, wall_s: float) -> ShardSummary:
    entries = [entry for note in notes for entry in note.entries]
    failures = {note.name: note.failure for note in notes if note.failure}
    problems = {entry.key: entry.reason for entry in entries if entry.reason}
    problems |= {name: failure.reason for name, failure in failures.items()}
    return ShardSummary(
        n_items=len(notes),
        n_ok=sum(entry.status == "ok" for entry in entries),
        n_partial=sum(entry.status == "partial" for entry in entries),
        n_failed=len(failures),
        n_resumed=n_resumed,
        n_rows=sum(entry.n_rows for entry in entries),
        wall_s=wall_s,
        problems=problems,
        passing=[name for name, failure in failures.items() if not failure.lasting],
    )
