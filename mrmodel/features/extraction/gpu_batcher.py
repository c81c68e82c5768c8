"""Extraction on a GPU: many decoding processes feed one encoder in batches.

A batch mixes clips of different videos, so batches are full whatever the videos' lengths. The
queue between the two sides is bounded: the slots of each worker and two batches. The encoder runs
in a second thread while this one fills the next batch.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mrmodel.encoders.base import Frames, Rows, VideoEncoder
from mrmodel.errors import MrModelError
from mrmodel.features.extraction.jobs import (
    Done,
    VideoJob,
    clip_shape,
    failure_of,
    frames_handler,
    save_video,
)
from mrmodel.features.extraction.partial_results import Failure, PartialResults
from mrmodel.features.extraction.worker_pool import Crash, Event, Finished, Part, WorkerPool
from mrmodel.features.index import IndexEntry
from mrmodel.features.store import to_stored
from mrmodel.video.decoder import VideoLimits

log = logging.getLogger(__name__)

# Size of each of a worker's two slots, which bounds how far it decodes ahead of the encoder.
_SLOT_BYTES = 8 << 20


@dataclass(eq=False)
class _Video:
    """One attempt at a video: its rows so far, and how its decoding ended."""

    job: VideoJob
    rows: list[Rows] = field(default_factory=list)
    is_decoded: bool = False
    entry: IndexEntry | None = None
    failure: Failure | None = None

    def end(self, result: IndexEntry | Failure | Crash) -> None:
        """Record how the decoding ended."""
        self.is_decoded = True
        if isinstance(result, IndexEntry):
            self.entry = result
        else:
            lasting = isinstance(result, Failure) and result.lasting
            self.failure = Failure(result.reason, lasting)

    @property
    def is_whole(self) -> bool:
        """Whether all rows of the video are there."""
        if not self.is_decoded or self.failure is not None:
            return self.is_decoded
        return self.entry is not None and self.entry.n_rows == sum(map(len, self.rows))


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Rows, or a failure, per span of a batch, and the encoder's times by `perf_counter`."""

    results: list[Rows | Failure]
    started_s: float
    ended_s: float


class _Batch:
    """Clips for one call of the encoder, and the videos they belong to."""

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        self._clips = np.empty((size, *shape), np.uint8)
        self.spans: list[tuple[_Video, int]] = []  # (video, number of clips), in order
        self.count = 0

    @property
    def is_full(self) -> bool:
        return self.count == len(self._clips)

    @property
    def clips(self) -> Frames:
        """(count, T, H, W, 3) uint8."""
        return self._clips[: self.count]

    def fill(self, video: _Video, clips: Frames) -> int:
        """Copy as many clips as there is room for; returns their number."""
        taken = min(len(clips), len(self._clips) - self.count)
        self._clips[self.count : self.count + taken] = clips[:taken]
        self.spans.append((video, taken))
        self.count += taken
        return taken

    def clear(self) -> None:
        self.spans, self.count = [], 0


def uses_batches(encoder: VideoEncoder) -> bool:
    """Whether one encoder serves all decoding processes."""
    return encoder.batch_clips > 1 and encoder.sampling.size is not None


class BatchingEncoder:
    """Extracts videos with one encoder in this process and several decoding processes.

    Args:
        encoder: its `batch_clips` is the batch size; its `sampling` must have a fixed frame size.
        clip_len_s: seconds of one row.
        limits: videos beyond them are rejected.
        folder: receives the partial results.
        count: number of decoding processes.
        timeout_s: wall-clock limit of one video's decoding.
    """

    def __init__(
        self,
        encoder: VideoEncoder,
        clip_len_s: float,
        limits: VideoLimits,
        folder: PartialResults,
        count: int,
        timeout_s: float,
    ) -> None:
        self._encoder, self._folder = encoder, folder
        self._shape = clip_shape(encoder.sampling)
        self._handler = partial(frames_handler, encoder.sampling, clip_len_s, limits)
        self._count, self._timeout_s = count, timeout_s
        self._filling, self._spare = (_Batch(encoder.batch_clips, self._shape) for _ in range(2))
        self._running: Future[_Encoded] | None = None
        self._videos: dict[VideoJob, _Video] = {}
        self._news: deque[Event[VideoJob]] = deque()
        self._first = 0  # index of the next part's first clip that is not in a batch yet
        # Encoder times since the last reported video; and when its last batch ended.
        self._idle_s = self._busy_s = 0.0
        self._ended_s = 0.0

    def run(self, jobs: Sequence[VideoJob]) -> Iterator[tuple[VideoJob, Done | Crash]]:
        """Yield the result of each video, in the order of completion.

        `decode_s` and `encode_s` of a result are the seconds the encoder waited, and worked, since
        the previous result.

        Raises:
            MrModelError: a problem that affects all videos, such as missing weights.
            RuntimeError: a defect in a worker process; the message holds its traceback.
        """
        slot_bytes = max(_SLOT_BYTES, math.prod(self._shape))
        pool = WorkerPool(self._handler, jobs, self._count, self._timeout_s, slot_bytes)
        ended, tell_end = multiprocessing.Pipe(duplex=False)
        self._ended_s = time.perf_counter()
        with ended, tell_end, ThreadPoolExecutor(1, "encoder") as thread:
            try:
                while self._videos or not pool.is_done:
                    if self._running is None and self._is_due(pool):
                        self._running = thread.submit(self._encode, self._filling)
                        self._running.add_done_callback(lambda _: tell_end.send_bytes(b"."))
                        self._filling, self._spare = self._spare, self._filling
                    elif not self._digest():
                        self._news.extend(pool.events(ended))
                        if ended.poll():
                            ended.recv_bytes()
                            self._collect()
                    yield from self._whole_videos()
            finally:
                pool.close()

    def _is_due(self, pool: WorkerPool[VideoJob]) -> bool:
        """Whether to encode the current batch: it is full, or holds the last clips."""
        return self._filling.is_full or bool(
            self._filling.count and pool.is_done and not self._news
        )

    def _digest(self) -> bool:
        """Handle worker events while there is room; returns whether anything was done."""
        if not self._news:
            return False
        event = self._news[0]
        if isinstance(event, Part):
            if self._filling.is_full:
                return False
            video = self._videos.setdefault(event.job, _Video(event.job))
            slot, count = event.value
            clips = event.slots.array(slot, (count, *self._shape))
            self._first += self._filling.fill(video, clips[self._first :])
            if self._first < count:
                return True
            self._first = 0
            event.taken()
        elif isinstance(event, Finished):
            self._videos.setdefault(event.job, _Video(event.job)).end(event.result)
        else:
            # Its outstanding rows go to a `_Video` that is no longer used.
            self._videos.pop(event.job, None)
        self._news.popleft()
        return True

    def _encode(self, batch: _Batch) -> _Encoded:
        """Run the encoder; in its thread."""
        started_s = time.perf_counter()
        results: list[Rows | Failure]
        try:
            rows = self._rows(batch.clips)
            results = list(np.split(rows, np.cumsum([count for _, count in batch.spans])[:-1]))
        except MrModelError:
            raise
        except Exception as error:
            # One video may be the cause: only that one shall fail.
            log.warning(
                "%s: %d clips: %r; one video at a time", self._encoder.name, batch.count, error
            )
            results = self._encode_singly(batch)
        return _Encoded(results, started_s, time.perf_counter())

    def _encode_singly(self, batch: _Batch) -> list[Rows | Failure]:
        found: list[Rows | Failure] = []
        first = 0
        for video, count in batch.spans:
            try:
                found.append(self._rows(batch.clips[first : first + count]))
            except Exception as error:
                found.append(failure_of(video.job, error))
            first += count
        return found

    def _rows(self, clips: Frames) -> Rows:
        rows = self._encoder.encode_clips(clips)
        if len(rows) != len(clips):
            name = self._encoder.name
            raise RuntimeError(f"{name} gave {len(rows)} rows of {len(clips)} clips, not one each")
        return rows

    def _collect(self) -> None:
        """Assign the rows of the encoded batch to its videos."""
        assert self._running is not None
        encoded, self._running = self._running.result(), None
        self._idle_s += encoded.started_s - self._ended_s
        self._busy_s += encoded.ended_s - encoded.started_s
        self._ended_s = encoded.ended_s
        for (video, _), result in zip(self._spare.spans, encoded.results, strict=True):
            if isinstance(result, Failure):
                video.failure = video.failure or result
            else:
                video.rows.append(result)
        self._spare.clear()

    def _whole_videos(self) -> Iterator[tuple[VideoJob, Done]]:
        whole = [video for video in self._videos.values() if video.is_whole]
        for video in whole:
            del self._videos[video.job]
            failure = video.failure or self._save(video)
            n_rows = 0 if failure else sum(map(len, video.rows))
            done = Done(n_rows, self._idle_s, self._busy_s, failure)
            self._idle_s = self._busy_s = 0.0
            yield video.job, done

    def _save(self, video: _Video) -> Failure | None:
        assert video.entry is not None
        try:
            rows = to_stored(np.concatenate(video.rows))
        except MrModelError as error:
            return failure_of(video.job, error)
        save_video(self._folder, video.job, video.entry, rows)
        return None
