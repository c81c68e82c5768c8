"""Worker handlers of an extraction: turn one video, or some texts, into a partial result.

Or into frames, where one encoder on a GPU serves all workers (`gpu_batcher`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mrmodel.encoders.base import TextEncoder, VideoEncoder
from mrmodel.errors import FeatureError, MrModelError, VideoError
from mrmodel.features.extraction.encode import encode_texts, encode_video
from mrmodel.features.extraction.partial_results import Failure, PartialResults, VideoFeatures
from mrmodel.features.extraction.worker_pool import SLOTS, SharedSlots
from mrmodel.features.index import IndexEntry
from mrmodel.features.keys import text_key
from mrmodel.features.store import Half
from mrmodel.files import sha256_of
from mrmodel.video.decoder import VideoLimits
from mrmodel.video.frames import DecodeReport, FrameSource
from mrmodel.video.sampling import FrameSampling

log = logging.getLogger(__name__)

# Decoders yield the CPU to the encoder's process, which keeps the GPU busy.
_DECODING_NICENESS = 5

# Transient errors; all others are caused by the file itself.
_PASSING_CODES = ("not_found", "unreadable", "timed_out")


@dataclass(frozen=True, slots=True)
class VideoJob:
    """One video to extract; `source` serves to detect that the file has changed."""

    name: str
    path: Path
    source: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, name: str, path: Path) -> VideoJob:
        """The job of a file in its current state; a missing file is reported when the job runs."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return cls(name, path, ())
        return cls(name, path, (("bytes", found.st_size), ("mtime_ns", found.st_mtime_ns)))


@dataclass(frozen=True, slots=True)
class TextJob:
    """Some texts, normalised and sorted by key."""

    name: str
    texts: tuple[str, ...]
    source: tuple[tuple[str, int], ...] = ()


Job = VideoJob | TextJob


@dataclass(frozen=True, slots=True)
class Done:
    """A worker's report on a job: rows made, seconds spent, and the failure, if any."""

    n_rows: int = 0
    decode_s: float = 0.0
    encode_s: float = 0.0
    failure: Failure | None = None


def video_handler(
    make_encoder: Callable[[], VideoEncoder],
    clip_len_s: float,
    limits: VideoLimits,
    folder: PartialResults,
) -> Callable[[VideoJob], Done]:
    """For a worker: build the encoder, then extract one video per call."""
    encoder = make_encoder()

    def handle(job: VideoJob) -> Done:
        try:
            encoded = encode_video(job.path, encoder, clip_len_s, limits)
            entry = video_entry(job, encoded.report)
        except Exception as error:
            return Done(failure=failure_of(job, error))
        save_video(folder, job, entry, encoded.rows)
        return Done(len(encoded.rows), encoded.decode_s, encoded.encode_s)

    return handle


def frames_handler(
    sampling: FrameSampling, clip_len_s: float, limits: VideoLimits, slots: SharedSlots
) -> Callable[[VideoJob], Generator[tuple[int, int], None, IndexEntry | Failure]]:
    """For a worker that only decodes: writes the clips of one video per call into the slots.

    The generator yields (slot, number of clips in it); it returns the entry of the video.
    """
    os.nice(_DECODING_NICENESS)
    shape = clip_shape(sampling)
    room = slots.slot_bytes // math.prod(shape)
    slot = 0

    def decode(job: VideoJob) -> Generator[tuple[int, int], None, IndexEntry | Failure]:
        nonlocal slot
        source, filled = FrameSource(job.path, limits), 0
        try:
            for clip in source.clips(clip_len_s, sampling):
                slots.array(slot, (room, *shape))[filled] = clip.frames
                filled += 1
                if filled == room:
                    yield slot, filled
                    slot, filled = (slot + 1) % SLOTS, 0
            if filled:
                yield slot, filled
                slot = (slot + 1) % SLOTS
            return video_entry(job, source.report)
        except Exception as error:
            return failure_of(job, error)

    return decode


def clip_shape(sampling: FrameSampling) -> tuple[int, int, int, int]:
    """(T, H, W, 3) of the clips of an encoder with a fixed frame size."""
    assert sampling.size is not None
    width, height = sampling.size
    return sampling.frames_per_clip, height, width, 3


def failure_of(job: VideoJob, error: Exception) -> Failure:
    """The failure that an exception during the extraction of a video amounts to.

    Raises:
        MrModelError: the error affects all videos, as missing weights do.
    """
    if isinstance(error, VideoError):
        return Failure(f"{error.code}: {error.detail}", lasting=error.code not in _PASSING_CODES)
    if isinstance(error, FeatureError):
        return Failure(str(error), lasting=True)
    if isinstance(error, MrModelError):
        raise error
    log.error("%s", job.path, exc_info=error)
    return Failure(f"{type(error).__name__}: {error}", lasting=False)


def save_video(folder: PartialResults, job: VideoJob, entry: IndexEntry, rows: Half) -> None:
    """Store the result of a video."""
    folder.save(job.name, VideoFeatures((entry,), rows), dict(job.source), entry.src_sha256)


def video_entry(job: VideoJob, report: DecodeReport) -> IndexEntry:
    """The index entry of a decoded video; it has one row per clip."""
    facts = asdict(report)
    extra = {key: facts[key] for key in ("width", "height", "decoded_s", "bad_packets")}
    if report.status != "ok":
        extra |= {key: facts[key] for key in ("parts", "n_untimed", "n_unseen") if facts[key]}
    return IndexEntry(
        key=job.name,
        n_rows=report.n_clips,
        duration_s=report.duration_s,
        status=report.status,
        reason=report.reason,
        n_interpolated=report.n_interpolated,
        src_sha256=sha256_of(job.path),
        extra=json.dumps(extra, sort_keys=True, allow_nan=False),
        start_s=report.start_s,
    )


def text_handler(
    make_encoder: Callable[[], TextEncoder], folder: PartialResults
) -> Callable[[TextJob], Done]:
    """For a worker: build the encoder, then encode the texts of one job per call."""
    encoder = make_encoder()

    def handle(job: TextJob) -> Done:
        started = time.perf_counter()
        rows = encode_texts(job.texts, encoder)
        spent_s = time.perf_counter() - started
        entries = tuple(
            IndexEntry(
                text_key(text), len(tokens), extra=json.dumps({"text": text}, allow_nan=False)
            )
            for text, tokens in zip(job.texts, rows, strict=True)
        )
        folder.save(job.name, VideoFeatures(entries, np.concatenate(rows)), dict(job.source))
        return Done(sum(map(len, rows)), encode_s=spent_s)

    return handle
