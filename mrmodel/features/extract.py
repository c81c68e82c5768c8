"""Extraction: videos or texts through an encoder into a feature store, resumable.

Worker processes leave finished pieces in a work folder; at the end they are put together in key
order. So the bytes of a store depend neither on the number of workers nor on interruptions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrmodel.components import ENCODERS
from mrmodel.errors import FeatureError
from mrmodel.features.index import Entry
from mrmodel.features.jobs import Done, Job, TextJob, VideoJob, text_handler, video_handler
from mrmodel.features.keys import normalise_query, text_key
from mrmodel.features.manifest import StreamInfo, stream_fingerprint
from mrmodel.features.pieces import PieceFolder
from mrmodel.features.workers import Crash, run_jobs
from mrmodel.features.writer import SHARD_BYTES, FeatureWriter
from mrmodel.files import digest_of
from mrmodel.processes import worker_count
from mrmodel.progress import NullReporter, Reporter
from mrmodel.video.decoder import VideoLimits

log = logging.getLogger(__name__)

_TEXTS_A_PIECE = 256
_SHOWN_FAILURES = 20


@dataclass(frozen=True, slots=True)
class ExtractionSettings:
    """How to extract.

    Attributes:
        work_dir: keeps finished pieces until the store is whole; not below the store.
        workers: processes; 0 = one a core.
        max_failed_share: of the videos; more failures than this stop the extraction.
        limits: videos beyond them are refused.
        timeout_s: wall-clock limit of one video.
        shard_bytes: largest file of the store.
    """

    work_dir: Path
    workers: int = 0
    max_failed_share: float = 0.01
    limits: VideoLimits = field(default_factory=VideoLimits)
    timeout_s: float = 3600.0
    shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True, slots=True)
class ExtractionSummary:
    """What an extraction did.

    Attributes:
        stream: name of the stream.
        n_items, n_ok, n_partial, n_failed: videos (or texts), by how they went.
        n_resumed: pieces (a video, or some texts) found finished from an interrupted run.
        n_rows: rows stored.
        wall_s: seconds of this run.
        rows_per_s: rows made in this run a second, all workers together.
        decode_wait: share of the workers' time in which the encoder waited for frames.
        problems: key -> reason, of every partial and failed item.
    """

    stream: str
    n_items: int
    n_ok: int
    n_partial: int
    n_failed: int
    n_resumed: int
    n_rows: int
    wall_s: float
    rows_per_s: float
    decode_wait: float
    problems: dict[str, str]


def extract_videos(
    videos: Mapping[str, Path],
    encoder_name: str,
    clip_len_s: float,
    out_dir: Path,
    settings: ExtractionSettings,
    reporter: Reporter | None = None,
) -> ExtractionSummary:
    """Extract one stream of features from video files.

    Args:
        videos: video id -> file.
        encoder_name: entry of `components.ENCODERS`, a video encoder.
        clip_len_s: seconds of one row.
        out_dir: the feature store to write.
        settings: see `ExtractionSettings`.
        reporter: told of every finished video.

    Raises:
        FeatureError: more videos failed than allowed; lists them with their reasons.
    """
    info = _describe(encoder_name, "video", clip_len_s)
    jobs = [VideoJob.of(vid, path) for vid, path in sorted(videos.items())]
    folder = PieceFolder(settings.work_dir)
    handler = partial(
        video_handler, ENCODERS.get(encoder_name), clip_len_s, settings.limits, folder
    )
    return _Extraction(info, jobs, folder, settings, reporter or NullReporter()).run(
        handler, out_dir
    )


def extract_texts(
    texts: Iterable[str],
    encoder_name: str,
    out_dir: Path,
    settings: ExtractionSettings,
    reporter: Reporter | None = None,
) -> ExtractionSummary:
    """Extract one stream of token features from texts; equal texts are stored once.

    Raises:
        FeatureError: a text is empty or cannot be encoded.
    """
    info = _describe(encoder_name, "text", None)
    by_key = {text_key(text): normalise_query(text) for text in texts}
    unique = [by_key[key] for key in sorted(by_key)]
    jobs = []
    for first in range(0, len(unique), _TEXTS_A_PIECE):
        piece = tuple(unique[first : first + _TEXTS_A_PIECE])
        jobs.append(TextJob(digest_of(piece), piece))
    folder = PieceFolder(settings.work_dir)
    handler = partial(text_handler, ENCODERS.get(encoder_name), folder)
    return _Extraction(info, jobs, folder, settings, reporter or NullReporter()).run(
        handler, out_dir
    )


class _Extraction:
    """One run: what is left to do, what came of it, and the store put together at the end."""

    def __init__(
        self,
        info: StreamInfo,
        jobs: Sequence[Job],
        folder: PieceFolder,
        settings: ExtractionSettings,
        reporter: Reporter,
    ) -> None:
        self._info, self._jobs, self._folder = info, jobs, folder
        self._settings, self._reporter = settings, reporter
        self._failures: dict[str, str] = {}
        self._rows_made, self._decode_s, self._encode_s = 0, 0.0, 0.0

    def run(
        self, make_handler: Callable[[], Callable[[Any], Done]], out_dir: Path
    ) -> ExtractionSummary:
        """Do the jobs that have no finished piece, then write the store."""
        started = time.perf_counter()
        plan = {"info": self._info.model_dump(mode="json"), "limits": asdict(self._settings.limits)}
        self._folder.open(plan)
        left = [job for job in self._jobs if not self._folder.has(job.name, dict(job.source))]
        n_resumed = len(self._jobs) - len(left)
        if n_resumed:
            log.info("%s: %d pieces are done already", self._info.stream, n_resumed)
        self._work(make_handler, left)
        working_s = time.perf_counter() - started
        entries = self._assemble(out_dir)
        self._folder.remove()
        spent_s = self._decode_s + self._encode_s
        statuses = [entry.status for entry in entries]
        return ExtractionSummary(
            stream=self._info.stream,
            n_items=len(entries),
            n_ok=statuses.count("ok"),
            n_partial=statuses.count("partial"),
            n_failed=statuses.count("failed"),
            n_resumed=n_resumed,
            n_rows=sum(entry.n_rows for entry in entries),
            wall_s=time.perf_counter() - started,
            rows_per_s=self._rows_made / working_s,
            decode_wait=self._decode_s / spent_s if spent_s else 0.0,
            problems={entry.key: entry.reason for entry in entries if entry.reason},
        )

    def _work(self, make_handler: Callable[[], Callable[[Any], Done]], left: list[Job]) -> None:
        count = min(worker_count(self._settings.workers), max(len(left), 1))
        started = time.perf_counter()
        self._reporter.start(f"extract {self._info.stream}", len(self._jobs))
        try:
            self._reporter.advance(len(self._jobs) - len(left))
            for job, done in run_jobs(make_handler, left, count, self._settings.timeout_s):
                self._take(job, done)
                speed = self._rows_made / (time.perf_counter() - started)
                self._reporter.advance(rows_per_s=speed, failed=len(self._failures))
        finally:
            self._reporter.finish()
        self._judge()

    def _take(self, job: Job, done: Done | Crash) -> None:
        reason = done.reason if isinstance(done, Crash) else done.failure
        if reason:
            self._fail(job, reason)
        elif isinstance(done, Done):
            self._rows_made += done.n_rows
            self._decode_s += done.decode_s
            self._encode_s += done.encode_s

    def _fail(self, job: Job, reason: str) -> None:
        if isinstance(job, TextJob):
            raise FeatureError(f"{self._info.stream}: texts from {job.texts[0]!r} on: {reason}")
        log.warning("%s: %s: %s", self._info.stream, job.path, reason)
        self._failures[job.name] = reason

    def _judge(self) -> None:
        failed, total = len(self._failures), len(self._jobs)
        if failed <= self._settings.max_failed_share * total:
            return
        shown = [f"{key}: {reason}" for key, reason in sorted(self._failures.items())]
        rest = f"; and {failed - _SHOWN_FAILURES} more" if failed > _SHOWN_FAILURES else ""
        allowed = f"more than the allowed share {self._settings.max_failed_share}"
        listed = "; ".join(shown[:_SHOWN_FAILURES])
        raise FeatureError(
            f"{self._info.stream}: {failed} of {total} videos gave no features, {allowed}: "
            f"{listed}{rest}"
        )

    def _assemble(self, out_dir: Path) -> list[Entry]:
        entries = []
        with FeatureWriter(out_dir, self._info, self._settings.shard_bytes) as writer:
            for entry, rows in self._pieces():
                writer.add(entry, rows)
                entries.append(entry)
        return entries

    def _pieces(self) -> Iterator[tuple[Entry, Any]]:
        """Entries and rows of all jobs, which come in key order."""
        nothing = np.zeros((0, self._info.dim), dtype=np.float16)
        for job in self._jobs:
            if job.name in self._failures:
                reason = self._failures[job.name]
                yield Entry(job.name, n_rows=0, status="failed", reason=reason), nothing
                continue
            piece = self._folder.load(job.name)
            first = 0
            for entry in piece.entries:
                yield entry, piece.rows[first : first + entry.n_rows]
                first += entry.n_rows


def _describe(
    encoder_name: str, modality: Literal["video", "text"], clip_len_s: float | None
) -> StreamInfo:
    encoder = ENCODERS.get(encoder_name)()
    if encoder.modality != modality:
        raise FeatureError(f"{encoder_name} encodes {encoder.modality}, not {modality}")
    return StreamInfo(
        stream=encoder_name,
        dim=encoder.dim,
        modality=modality,
        keyed_by="vid" if modality == "video" else "text",
        clip_len_s=clip_len_s,
        fingerprint=stream_fingerprint(encoder.fingerprint(), clip_len_s),
    )
