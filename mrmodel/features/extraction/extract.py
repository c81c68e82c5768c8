"""Resumable extraction of videos or texts into a feature store.

Worker processes, or shards on other machines (`shards`), write partial results to a work folder,
which are merged in key order at the end. So the bytes of a store depend neither on the number of
workers and shards nor on interruptions; only on a GPU may rounding depend on the order of the
clips (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mrmodel.components import ENCODERS
from mrmodel.errors import FeatureError
from mrmodel.features.extraction.job_runner import (
    ExtractionJob,
    ExtractionSettings,
    describe_stream,
    video_work,
)
from mrmodel.features.extraction.jobs import Done, TextJob, text_handler
from mrmodel.features.extraction.partial_results import PartialResults
from mrmodel.features.extraction.worker_pool import Crash, run_jobs
from mrmodel.features.index import IndexEntry
from mrmodel.features.keys import normalise_query, text_key
from mrmodel.features.writer import FeatureWriter
from mrmodel.files import digest_of
from mrmodel.progress import Reporter
from mrmodel.text import first_of

_TEXTS_PER_JOB = 256
_SHOWN_FAILURES = 20


@dataclass(frozen=True, slots=True)
class ExtractionSummary:
    """What an extraction did.

    Attributes:
        stream: name of the stream.
        n_items, n_ok, n_partial, n_failed: number of videos (or texts), in total and by status.
        n_resumed: jobs already finished by an interrupted run or a shard.
        n_rows: rows stored.
        wall_s: seconds of this run.
        rows_per_s: rows (clips, or tokens) computed per second in this run, over all workers.
        decode_wait_ratio: fraction of the encoders' time spent waiting for frames.
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
    decode_wait_ratio: float
    problems: dict[str, str]


def extract_videos(
    videos: Mapping[str, Path],
    encoder_name: str,
    clip_len_s: float,
    out_dir: Path,
    settings: ExtractionSettings,
    reporter: Reporter | None = None,
) -> ExtractionSummary:
    """Extract one feature stream from video files.

    Args:
        videos: video id -> file.
        encoder_name: entry of `components.ENCODERS`, a video encoder.
        clip_len_s: seconds of one row.
        out_dir: the feature store to write.
        settings: see `ExtractionSettings`.
        reporter: notified of every finished video.

    Raises:
        FeatureError: more videos failed than allowed; lists them with their reasons.
    """
    return _extract(video_work(videos, encoder_name, clip_len_s, settings, reporter), out_dir)


def extract_texts(
    texts: Iterable[str],
    encoder_name: str,
    out_dir: Path,
    settings: ExtractionSettings,
    reporter: Reporter | None = None,
) -> ExtractionSummary:
    """Extract one stream of token features from texts; duplicate texts are stored once.

    Raises:
        FeatureError: a text is empty or cannot be encoded.
    """
    info = describe_stream(encoder_name, "text", None)
    by_key = {text_key(text): normalise_query(text) for text in texts}
    unique = [by_key[key] for key in sorted(by_key)]
    jobs = []
    for first in range(0, len(unique), _TEXTS_PER_JOB):
        chunk = tuple(unique[first : first + _TEXTS_PER_JOB])
        jobs.append(TextJob(digest_of(chunk), chunk))
    folder = PartialResults(settings.work_dir)
    handler = partial(text_handler, ENCODERS.get(encoder_name), folder)

    def run(left: list[TextJob], count: int) -> Iterator[tuple[TextJob, Done | Crash]]:
        return run_jobs(handler, left, count, settings.timeout_s)

    return _extract(ExtractionJob(info, jobs, run, settings, reporter), out_dir)


def _extract(work: ExtractionJob, out_dir: Path) -> ExtractionSummary:
    """Run the remaining jobs, then write the store."""
    started = time.perf_counter()
    work.run()
    _judge(work)
    entries = _assemble(work, out_dir)
    work.folder.remove()
    statuses = [entry.status for entry in entries]
    return ExtractionSummary(
        stream=work.info.stream,
        n_items=len(entries),
        n_ok=statuses.count("ok"),
        n_partial=statuses.count("partial"),
        n_failed=statuses.count("failed"),
        n_resumed=work.n_resumed,
        n_rows=sum(entry.n_rows for entry in entries),
        wall_s=time.perf_counter() - started,
        rows_per_s=work.rows_made / work.working_s if work.working_s else 0.0,
        decode_wait_ratio=work.decode_wait_ratio,
        problems={entry.key: entry.reason for entry in entries if entry.reason},
    )


def _judge(work: ExtractionJob) -> None:
    failed, total = len(work.failures), len(work.jobs)
    if failed <= work.settings.max_failed_share * total:
        return
    for name, failure in work.failures.items():
        if not failure.lasting:  # The next run retries it, even if it failed in a shard.
            work.folder.forget(name)
    shown = [f"{key}: {failure.reason}" for key, failure in sorted(work.failures.items())]
    allowed = f"more than the allowed share {work.settings.max_failed_share}"
    raise FeatureError(
        f"{work.info.stream}: {failed} of {total} videos gave no features, {allowed}: "
        f"{first_of(shown, _SHOWN_FAILURES)}"
    )


def _assemble(work: ExtractionJob, out_dir: Path) -> list[IndexEntry]:
    entries = []
    with FeatureWriter(out_dir, work.info, work.settings.shard_bytes) as writer:
        for entry, rows in _all_rows(work):
            writer.add(entry, rows)
            entries.append(entry)
    return entries


def _all_rows(work: ExtractionJob) -> Iterator[tuple[IndexEntry, Any]]:
    """Entries and rows of all jobs, in key order."""
    nothing = np.zeros((0, work.info.dim), dtype=np.float16)
    for job in work.jobs:
        if job.name in work.failures:
            reason = work.failures[job.name].reason
            yield IndexEntry(job.name, n_rows=0, status="failed", reason=reason), nothing
            continue
        found = work.folder.load(job.name)
        first = 0
        for entry in found.entries:
            yield entry, found.rows[first : first + entry.n_rows]
            first += entry.n_rows
