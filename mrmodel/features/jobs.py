"""What a worker process does in an extraction: one video, or some texts, into a finished piece."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mrmodel.encoders.base import TextEncoder, VideoEncoder
from mrmodel.errors import FeatureError, MrModelError, VideoError
from mrmodel.features.encode import EncodedVideo, encode_texts, encode_video
from mrmodel.features.index import Entry
from mrmodel.features.keys import text_key
from mrmodel.features.pieces import Failure, Piece, PieceFolder
from mrmodel.files import sha256_of
from mrmodel.video.decoder import VideoLimits

log = logging.getLogger(__name__)

# What may be otherwise on another machine, or at another time; all else is in the file.
_PASSING_CODES = ("not_found", "unreadable")


@dataclass(frozen=True, slots=True)
class VideoJob:
    """One video to extract; `source` tells whether the file has changed since."""

    name: str
    path: Path
    source: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, name: str, path: Path) -> VideoJob:
        """The job of a file as it is now; a missing file fails later, as that video's failure."""
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
    """A worker's word on a job: rows made, seconds spent, and why it failed, if it did."""

    n_rows: int = 0
    decode_s: float = 0.0
    encode_s: float = 0.0
    failure: Failure | None = None


def video_handler(
    make_encoder: Callable[[], VideoEncoder],
    clip_len_s: float,
    limits: VideoLimits,
    folder: PieceFolder,
) -> Callable[[VideoJob], Done]:
    """For a worker: build the encoder, then extract one video a call."""
    encoder = make_encoder()

    def handle(job: VideoJob) -> Done:
        try:
            encoded = encode_video(job.path, encoder, clip_len_s, limits)
        except VideoError as error:
            lasting = error.code not in _PASSING_CODES
            return Done(failure=Failure(f"{error.code}: {error.detail}", lasting))
        except FeatureError as error:
            return Done(failure=Failure(str(error), lasting=True))
        except MrModelError:
            raise  # missing weights and the like concern all videos
        except Exception as error:
            log.exception("%s", job.path)
            return Done(failure=Failure(f"{type(error).__name__}: {error}", lasting=False))
        entry = _video_entry(job, encoded)
        folder.save(job.name, Piece((entry,), encoded.rows), dict(job.source), entry.src_sha256)
        return Done(len(encoded.rows), encoded.decode_s, encoded.encode_s)

    return handle


def _video_entry(job: VideoJob, encoded: EncodedVideo) -> Entry:
    report = asdict(encoded.report)
    extra = {key: report[key] for key in ("width", "height", "decoded_s", "bad_packets")}
    return Entry(
        key=job.name,
        n_rows=len(encoded.rows),
        duration_s=encoded.report.duration_s,
        status=encoded.report.status,
        reason=encoded.report.reason,
        n_interpolated=encoded.report.n_interpolated,
        src_sha256=sha256_of(job.path),
        extra=json.dumps(extra, sort_keys=True),
    )


def text_handler(
    make_encoder: Callable[[], TextEncoder], folder: PieceFolder
) -> Callable[[TextJob], Done]:
    """For a worker: build the encoder, then encode the texts of one job a call."""
    encoder = make_encoder()

    def handle(job: TextJob) -> Done:
        started = time.perf_counter()
        rows = encode_texts(job.texts, encoder)
        spent_s = time.perf_counter() - started
        entries = tuple(
            Entry(text_key(text), len(tokens), extra=json.dumps({"text": text}))
            for text, tokens in zip(job.texts, rows, strict=True)
        )
        folder.save(job.name, Piece(entries, np.concatenate(rows)), dict(job.source))
        return Done(sum(map(len, rows)), encode_s=spent_s)

    return handle
