"""Adding videos to a library: find files, tell contents apart, encode what is new.

The identity of a video is the SHA-256 of its content, so a moved, renamed or copied file is not
encoded again. Files are handled in the order of their paths, each with one transaction; a killed
run leaves partial results from which the next one goes on.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from mrmodel.components import ENCODERS
from mrmodel.data.ingest.videos import VIDEO_SUFFIXES
from mrmodel.encoders.base import VideoEncoder
from mrmodel.errors import VideoError, reason_of
from mrmodel.features.extraction.encode import encode_streams, report_of
from mrmodel.features.extraction.gpu_batcher import uses_batches
from mrmodel.features.extraction.job_runner import ExtractionSettings, extraction_plan, video_work
from mrmodel.features.extraction.jobs import (
    VideoJob,
    failure_of,
    save_video,
    video_entry,
)
from mrmodel.features.extraction.partial_results import Failure, PartialResults
from mrmodel.features.extraction.worker_pool import Crash, run_jobs
from mrmodel.files import read_json, sha256_of, write_json
from mrmodel.library.folder import (
    WORK,
    Encoded,
    LibraryFolder,
    Sentence,
    StoredFile,
    StoredStream,
)
from mrmodel.library.words import Sidecars, read_sidecars, read_tracks, state_of
from mrmodel.processes import worker_count
from mrmodel.progress import NullReporter, Reporter
from mrmodel.video.decoder import VideoLimits
from mrmodel.video.remote import is_pointer, read_video_pointer

# Files that are looked at, and then encoded, at a time.
_CHUNK = 64
_HASHED_AT_ONCE = 4


@dataclass(slots=True)
class AddReport:
    """What `add_videos` did.

    Attributes:
        encoded: files whose content was encoded.
        moved: new path -> old path, of files that were found elsewhere.
        duplicates: path -> another path with the same content.
        unchanged: number of files that were known as they are.
        problems: path -> why it has no rows.
        notes: path -> why subtitles were left out.
        missing: files of the library that are not there any more.
        removed: contents that no file has any more.
    """

    encoded: list[Path] = field(default_factory=list)
    moved: dict[Path, Path] = field(default_factory=dict)
    duplicates: dict[Path, Path] = field(default_factory=dict)
    unchanged: int = 0
    problems: dict[Path, str] = field(default_factory=dict)
    notes: dict[Path, str] = field(default_factory=dict)
    missing: list[Path] = field(default_factory=list)
    removed: int = 0


@dataclass(frozen=True, slots=True)
class AddSettings:
    """How to encode.

    Attributes:
        workers: processes; 0 = one per core.
        limits: videos beyond them are rejected.
        timeout_s: wall-clock limit of one video.
        retry: also try files again that failed before for a lasting reason.
    """

    workers: int = 0
    limits: VideoLimits = field(default_factory=VideoLimits)
    timeout_s: float = 3600.0
    retry: bool = False


def find_videos(path: Path) -> list[Path]:
    """The video files below a folder, or the file itself: absolute paths, sorted.

    Hidden files and folders are left out; symbolic links to folders are not followed.
    """
    path = absolute(path)
    if not path.is_dir():
        return [path]
    found = []
    for parent, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        found += [one for one in paths if one.suffix.lower() in VIDEO_SUFFIXES or is_pointer(one)]
    return sorted(found)


def absolute(path: Path) -> Path:
    """An absolute path without ``..``; symbolic links stay."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the links


@dataclass(slots=True)
class _Item:
    """A file to be looked at; `work` is its size, or that of its object in S3, in MB."""

    path: Path
    n_bytes: int = 0
    mtime_ns: int = 0
    sidecars: str = "[]"
    work: int = 1
    sha256: str = ""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class _EncodeJob(VideoJob):
    """A content, by its SHA-256; `streams` are the folders of those that lack its rows."""

    streams: tuple[str, ...] = ()


class Adder:
    """Adds files to a library that this process is writing.

    Args:
        folder: the library.
        streams: every content gets rows of all of these.
        settings: see `AddSettings`.
        reporter: notified of every finished file.
    """

    def __init__(
        self,
        folder: LibraryFolder,
        streams: Sequence[StoredStream],
        settings: AddSettings,
        reporter: Reporter | None = None,
    ) -> None:
        self._folder, self._streams, self._settings = folder, list(streams), settings
        self._reporter = reporter or NullReporter()
        self._work = folder.folder / WORK
        self._sidecars = Sidecars()
        self._clip_len_s = streams[0].info.clip_len_s or 0.0
        # Classes: a worker process does not know what third parties have registered here.
        self._encoders = {one.folder: ENCODERS.get(one.info.stream) for one in streams}
        self._batching = {
            one.folder: one.info.stream
            for one in streams
            if uses_batches(self._encoders[one.folder]())
        }
        self._known = {file.path: file for file in folder.files()}
        self.report = AddReport()

    def run(self, paths: Iterable[Path]) -> AddReport:
        """Add files in the order of their paths.

        Raises:
            MrModelError: nothing can be encoded (missing weights), or the library not be written.
        """
        items = [item for path in sorted(set(paths)) if (item := self._look(path)) is not None]
        if items:
            self._open_work()
        self._reporter.start("add videos (MB)", sum(item.work for item in items))
        try:
            for first in range(0, len(items), _CHUNK):
                self._add(items[first : first + _CHUNK])
        finally:
            self._reporter.finish()
        shutil.rmtree(self._work, ignore_errors=True)
        self.report.removed = self._folder.delete_unused()
        return self.report

    def _look(self, path: Path) -> _Item | None:
        """A file that is new, changed or incomplete; None if there is nothing to do."""
        known, item = self._known.get(path), _Item(path)
        try:
            str(path).encode()
            found = path.stat()
        except UnicodeEncodeError:
            self.report.problems[path] = "its name is not UTF-8; rename it"
            return None
        except OSError as error:
            item.failure = Failure(reason_of(error), lasting=False)
            return item
        item.n_bytes, item.mtime_ns = found.st_size, found.st_mtime_ns
        item.sidecars = state_of(self._sidecars.of(path))
        item.work = 1 + _bytes_to_read(path, found.st_size) // 1_000_000
        if known is None or (known.n_bytes, known.mtime_ns) != (item.n_bytes, item.mtime_ns):
            return item
        item.sha256 = known.sha256
        if known.problem:
            if self._settings.retry or not known.lasting:
                return item
            self.report.problems[path] = known.problem
            return None
        if self._missing(known.sha256) or known.sidecars != item.sidecars:
            return item
        self.report.unchanged += 1
        if known.note:
            self.report.notes[path] = known.note
        return None

    def _add(self, items: Sequence[_Item]) -> None:
        """Encode what is missing of some files, and store each once those before it are stored."""
        self._identify(items)
        waiting = deque(items)
        jobs = self._jobs(items)
        left = {job.name for job in jobs}
        failures: dict[str, Failure] = {}
        for name, failure in self._encode(jobs):
            left.discard(name)
            if failure is not None:
                failures[name] = failure
            while waiting and waiting[0].sha256 not in left:
                self._store(waiting.popleft(), failures)
        while waiting:
            self._store(waiting.popleft(), failures)

    def _identify(self, items: Sequence[_Item]) -> None:
        """Read the contents of files whose hash is not known."""

        def identify(item: _Item) -> None:
            try:
                if not stat.S_ISREG(item.path.stat().st_mode):
                    item.failure = Failure("is no file", lasting=False)
                else:
                    item.sha256 = sha256_of(item.path)
            except OSError as error:
                item.failure = Failure(reason_of(error), lasting=False)

        unknown = [item for item in items if item.failure is None and not item.sha256]
        with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
            list(pool.map(identify, unknown))

    def _jobs(self, items: Sequence[_Item]) -> list[_EncodeJob]:
        """One job for each content that lacks rows."""
        jobs: dict[str, _EncodeJob] = {}
        for item in items:
            missing = self._missing(item.sha256) if item.failure is None else []
            if missing and item.sha256 not in jobs:
                source = (("bytes", item.n_bytes), ("mtime_ns", item.mtime_ns))
                folders = tuple(stream.folder for stream in missing)
                jobs[item.sha256] = _EncodeJob(item.sha256, item.path, source, folders)
        return list(jobs.values())

    def _missing(self, sha256: str) -> list[StoredStream]:
        """Streams that hold no rows of a content."""
        video = self._folder.video_of(sha256)
        have = set() if video is None else self._folder.streams_of(video)
        return [stream for stream in self._streams if stream.id not in have]

    def _encode(self, jobs: Sequence[_EncodeJob]) -> Iterator[tuple[str, Failure | None]]:
        """Make the partial results of some contents; yields each content once it is finished."""
        failures = self._encode_in_batches(jobs)
        left = []
        for job in jobs:
            if job.name in failures or self._is_made(job):
                yield job.name, failures.get(job.name)
            else:
                streams = tuple(one for one in job.streams if one not in self._batching)
                left.append(replace(job, streams=streams))
        settings = self._settings
        handler = partial(
            _encode_handler, self._work, self._encoders, self._clip_len_s, settings.limits
        )
        count = min(worker_count(settings.workers), max(len(left), 1))
        for job, failure in run_jobs(handler, left, count, settings.timeout_s):
            if isinstance(failure, Crash):
                failure = Failure(failure.reason, lasting=False)
            yield job.name, failure

    def _encode_in_batches(self, jobs: Sequence[_EncodeJob]) -> dict[str, Failure]:
        """Run the encoders that use batches of clips of many videos, as those on a GPU do."""
        settings, failures = self._settings, dict[str, Failure]()
        for folder, name in self._batching.items():
            videos = {job.name: job.path for job in jobs if folder in job.streams}
            made = ExtractionSettings(
                self._work / folder,
                settings.workers,
                limits=settings.limits,
                timeout_s=settings.timeout_s,
            )
            work = video_work(videos, name, self._clip_len_s, made)
            work.run()
            failures |= work.failures
        return failures

    def _store(self, item: _Item, failures: Mapping[str, Failure]) -> None:
        """Put a file, and what belongs to it, into the library."""
        known = self._known.get(item.path)
        file = StoredFile(item.path, None, item.sha256, item.n_bytes, item.mtime_ns)
        failure = item.failure or failures.get(item.sha256)
        if failure is None:
            self._store_video(item, file, known)
        else:
            self.report.problems[item.path] = failure.reason
            # What may pass changes nothing about a file that the library has.
            if failure.lasting or (item.n_bytes and (known is None or known.video is None)):
                file = replace(file, problem=failure.reason, lasting=failure.lasting)
                self._folder.put_file(file)
        self._reporter.advance(item.work, failed=len(self.report.problems))

    def _store_video(self, item: _Item, file: StoredFile, known: StoredFile | None) -> None:
        path, report = item.path, self.report
        missing = self._missing(item.sha256)
        encoded = self._made(item.sha256, missing) if missing else None
        video = self._folder.video_of(item.sha256)
        others = [] if video is None else self._folder.paths_of(video)
        is_new = path not in others
        moved = [one for one in others if not one.exists()] if is_new else []
        sentences, note = None, known.note if known else ""
        if is_new or known is None or known.sidecars != item.sidecars:
            sentences, note = read_sidecars(self._sidecars.of(path))
        file = replace(file, video=video, sidecars=item.sidecars, note=note)
        self._folder.put_file(file, sentences, encoded, moved)
        self._forget_made(item.sha256)
        if note:
            report.notes[path] = note
        if encoded is not None:
            report.encoded.append(path)
        elif moved:
            report.moved[path] = moved[0]
        elif is_new and others:
            report.duplicates[path] = others[0]
        else:
            report.unchanged += 1

    # Partial results

    def _open_work(self) -> None:
        for stream in self._streams:
            plan = extraction_plan(stream.info, self._settings.limits)
            PartialResults(self._work / stream.folder).open(plan)

    def _is_made(self, job: _EncodeJob) -> bool:
        """Whether all results of a content are there."""
        folders = (PartialResults(self._work / folder) for folder in job.streams)
        found = [one.find(job.name, dict(job.source), job.path) for one in folders]
        return None not in found and _words_file(self._work, job.name).exists()

    def _made(self, sha256: str, streams: Iterable[StoredStream]) -> Encoded:
        """The results of a content."""
        rows, report = {}, None
        for stream in streams:
            features = PartialResults(self._work / stream.folder).load(sha256)
            rows[stream.id] = features.rows
            report = report or report_of(features.entries[0])
        assert report is not None
        words = read_json(_words_file(self._work, sha256))
        return Encoded(rows, report, [Sentence(*one) for one in words])

    def _forget_made(self, sha256: str) -> None:
        for stream in self._streams:
            folder = PartialResults(self._work / stream.folder)
            folder.forget(sha256)
            folder.rows_path(sha256).unlink(missing_ok=True)
        _words_file(self._work, sha256).unlink(missing_ok=True)


def _encode_handler(
    work: Path,
    makers: Mapping[str, Callable[[], VideoEncoder]],
    clip_len_s: float,
    limits: VideoLimits,
) -> Callable[[_EncodeJob], Failure | None]:
    """For a worker: encode one content per call, for all streams at once.

    Args:
        work: folder of the partial results.
        makers: folder of a stream in it -> what makes its encoder.
        clip_len_s: seconds of a clip.
        limits: see `AddSettings`.
    """
    encoders = {folder: make() for folder, make in makers.items()}

    def handle(job: _EncodeJob) -> Failure | None:
        try:
            made = [encoders[folder] for folder in job.streams]
            results = encode_streams(job.path, made, clip_len_s, limits) if made else []
            entries = [video_entry(job, one.report) for one in results]
            if entries and entries[0].src_sha256 != job.name:
                return Failure("it was changed while it was read", lasting=False)
        except Exception as error:
            return failure_of(job, error)
        words = [[one.start_s, one.end_s, one.text] for one in read_tracks(job.path)]
        write_json(_words_file(work, job.name), words)
        for folder, entry, one in zip(job.streams, entries, results, strict=True):
            save_video(PartialResults(work / folder), job, entry, one.rows)
        return None

    return handle


def _words_file(work: Path, sha256: str) -> Path:
    return work / "words" / f"{sha256}.json"


def _bytes_to_read(path: Path, n_bytes: int) -> int:
    try:
        return read_video_pointer(path).n_bytes if is_pointer(path) else n_bytes
    except VideoError:
        return n_bytes
