"""Runs the jobs of an extraction that have no stored result yet."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mrmodel.components import ENCODERS
from mrmodel.config.base import flatten
from mrmodel.errors import FeatureError
from mrmodel.features.extraction.gpu_batcher import BatchingEncoder, uses_batches
from mrmodel.features.extraction.jobs import Done, Job, TextJob, VideoJob, video_handler
from mrmodel.features.extraction.partial_results import Failure, PartialResults
from mrmodel.features.extraction.worker_pool import Crash, run_jobs
from mrmodel.features.manifest import StreamInfo, require_fingerprint, stream_fingerprint
from mrmodel.features.writer import SHARD_BYTES
from mrmodel.processes import worker_count
from mrmodel.progress import NullReporter, Reporter
from mrmodel.video.decoder import VideoLimits

log = logging.getLogger(__name__)

# Incremented when partial results of an earlier release can no longer be read.
_RESULTS_VERSION = 2


@dataclass(frozen=True, slots=True)
class ExtractionSettings:
    """Settings of an extraction.

    Attributes:
        work_dir: keeps partial results until the store is complete; not inside the store.
        workers: number of processes; 0 = one per core.
        max_failed_share: largest fraction of failed videos; above it the extraction fails.
        limits: videos beyond them are rejected.
        timeout_s: wall-clock limit of one video.
        shard_bytes: largest file of the store.
    """

    work_dir: Path
    workers: int = 0
    max_failed_share: float = 0.01
    limits: VideoLimits = field(default_factory=VideoLimits)
    timeout_s: float = 3600.0
    shard_bytes: int = SHARD_BYTES


class ExtractionJob:
    """The jobs of one stream and their results so far.

    Args:
        info: the stream.
        jobs: in key order.
        run_jobs: runs the given jobs in the given number of processes; yields their results.
        settings: see `ExtractionSettings`.
        reporter: notified of every finished job.

    Attributes:
        folder: the partial results.
        failures: name -> failure, over all jobs, including those of shards.
        n_resumed: jobs that were finished before this run.
        rows_made, working_s, decode_s, encode_s: of this run; the last two are the time that all
            encoders together waited for frames, and worked.
    """

    def __init__(
        self,
        info: StreamInfo,
        jobs: Sequence[Job],
        run_jobs: Callable[[list[Any], int], Iterator[tuple[Any, Done | Crash]]],
        settings: ExtractionSettings,
        reporter: Reporter | None = None,
    ) -> None:
        self.info, self.jobs, self.settings = info, jobs, settings
        self.folder = PartialResults(settings.work_dir)
        self.failures: dict[str, Failure] = {}
        self.n_resumed = self.rows_made = 0
        self.working_s = self.decode_s = self.encode_s = 0.0
        self._run_jobs, self._reporter = run_jobs, reporter or NullReporter()

    def run(self, *, retry_transient: bool = False) -> None:
        """Run the jobs that have no stored result.

        Args:
            retry_transient: also retry jobs that failed in a shard for a transient reason.
        """
        self.folder.open(extraction_plan(self.info, self.settings.limits))
        left = []
        for job in self.jobs:
            path = job.path if isinstance(job, VideoJob) else None
            note = self.folder.find(job.name, dict(job.source), path)
            if note is None or (retry_transient and note.failure and not note.failure.lasting):
                left.append(job)
            elif note.failure:
                self._fail(job, note.failure)
        self.n_resumed = len(self.jobs) - len(left)
        if self.n_resumed:
            log.info("%s: %d items are done already", self.info.stream, self.n_resumed)
        self._do(left)

    def _do(self, left: list[Job]) -> None:
        count = min(worker_count(self.settings.workers), max(len(left), 1))
        started = time.perf_counter()
        n_jobs = len(self.jobs)
        self._reporter.start(f"extract {self.info.stream}", n_jobs, n_jobs - len(left))
        try:
            for job, done in self._run_jobs(left, count):
                self._take(job, done)
                self.working_s = time.perf_counter() - started
                self._reporter.advance(**self._figures(), failed=len(self.failures))
        finally:
            self._reporter.finish()

    def _figures(self) -> dict[str, Any]:
        speed = self.rows_made / self.working_s
        if self.info.modality == "text":
            return {"rows_per_s": speed}
        return {"clips_per_s": speed, "decode_wait_ratio": self.decode_wait_ratio}

    @property
    def decode_wait_ratio(self) -> float:
        """Fraction of the encoders' time spent waiting for frames."""
        spent_s = self.decode_s + self.encode_s
        return self.decode_s / spent_s if spent_s else 0.0

    def _take(self, job: Job, done: Done | Crash) -> None:
        if isinstance(done, Crash):
            self._fail(job, Failure(done.reason, lasting=False))
            return
        self.rows_made += done.n_rows
        self.decode_s += done.decode_s
        self.encode_s += done.encode_s
        if done.failure:
            self._fail(job, done.failure)

    def _fail(self, job: Job, failure: Failure) -> None:
        if isinstance(job, TextJob):
            raise FeatureError(
                f"{self.info.stream}: texts from {job.texts[0]!r} on: {failure.reason}"
            )
        log.warning("%s: %s: %s", self.info.stream, job.path, failure.reason)
        self.failures[job.name] = failure


def video_work(
    videos: Mapping[str, Path],
    encoder_name: str,
    clip_len_s: float,
    settings: ExtractionSettings,
    reporter: Reporter | None = None,
) -> ExtractionJob:
    """The extraction job of a stream of videos: id -> file.

    An encoder that uses batches of clips (on a GPU) runs once, in this process, and the workers
    only decode; any other encoder runs in each worker.
    """
    info = describe_stream(encoder_name, "video", clip_len_s)
    jobs = [VideoJob.of(vid, path) for vid, path in sorted(videos.items())]
    folder, limits = PartialResults(settings.work_dir), settings.limits
    make_encoder = ENCODERS.get(encoder_name)

    def run(left: list[VideoJob], count: int) -> Iterator[tuple[VideoJob, Done | Crash]]:
        encoder = make_encoder()
        if uses_batches(encoder):
            feed = BatchingEncoder(encoder, clip_len_s, limits, folder, count, settings.timeout_s)
            return feed.run(left)
        handler = partial(video_handler, make_encoder, clip_len_s, limits, folder)
        return run_jobs(handler, left, count, settings.timeout_s)

    return ExtractionJob(info, jobs, run, settings, reporter)


def extraction_plan(info: StreamInfo, limits: VideoLimits) -> dict[str, Any]:
    """What determines a stream's partial results, as JSON; those of two plans are never mixed."""
    shown, limited = info.model_dump(mode="json"), asdict(limits)
    del limited["timeout_s"]  # What takes longer gives no result.
    return {"version": _RESULTS_VERSION, "info": shown, "limits": limited}


def require_plan(name: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that partial results were made, or would be made, as expected.

    Raises:
        FeatureMismatch: with each part of the plan that differs.
    """
    # Flattened, so that a mismatch names the entry and not its section.
    require_fingerprint(name, flatten(found), flatten(expected))


def describe_stream(
    encoder_name: str, modality: Literal["video", "text"], clip_len_s: float | None
) -> StreamInfo:
    """Describe the rows of an encoder; reads no weights.

    Raises:
        FeatureError: the encoder is for the other modality.
    """
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
