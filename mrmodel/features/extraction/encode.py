"""Encode a video file, or texts, into feature rows, for a store or for serving."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrmodel.encoders.base import Frames, Rows, TextEncoder, VideoEncoder
from mrmodel.errors import FeatureError
from mrmodel.features.index import IndexEntry
from mrmodel.features.keys import normalise_query
from mrmodel.features.store import Half, to_stored
from mrmodel.video.decoder import VideoLimits
from mrmodel.video.frames import ClipFrames, DecodeReport, FrameSource
from mrmodel.video.timeline import Part

# Clips passed to the encoder at once: enough to be fast, few enough to fit large frames.
_GROUP_CLIPS = 32
_GROUP_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """Rows (n_clips, dim) of a video, its decode report, and the seconds spent on each part."""

    rows: Half
    report: DecodeReport
    decode_s: float
    encode_s: float


def encode_video(
    path: Path, encoder: VideoEncoder, clip_len_s: float, limits: VideoLimits | None = None
) -> EncodedVideo:
    """Decode a video and encode its clips.

    Raises:
        VideoError: the file gives no frames.
        FeatureError: the encoder gave values that cannot be stored.
    """
    (encoded,) = encode_streams(path, [encoder], clip_len_s, limits)
    return encoded


def encode_streams(
    path: Path,
    encoders: Sequence[VideoEncoder],
    clip_len_s: float,
    limits: VideoLimits | None = None,
) -> list[EncodedVideo]:
    """The results of `encode_video` for several encoders, from decoding the video once.

    A file with errors is decoded once per encoder: which picture then stands for a lost one depends
    on the frames that an encoder needs.

    Raises:
        VideoError, FeatureError: see `encode_video`.
    """
    source, streams = FrameSource(path, limits), [_Stream(encoder) for encoder in encoders]
    started = time.perf_counter()
    for place, clip in source.clips_for(clip_len_s, [one.sampling for one in encoders]):
        streams[place].add(clip)
    if source.is_flawed and len(encoders) > 1:
        return [encode_video(path, one, clip_len_s, limits) for one in encoders]
    rows = [to_stored(stream.finish()) for stream in streams]
    decode_s = time.perf_counter() - started - sum(stream.encode_s for stream in streams)
    return [
        EncodedVideo(values, source.report, decode_s, stream.encode_s)
        for values, stream in zip(rows, streams, strict=True)
    ]


def encode_texts(texts: Sequence[str], encoder: TextEncoder) -> list[Half]:
    """Normalise and encode texts: one (n_tokens, dim) array a text.

    Raises:
        FeatureError: a text is empty, or the encoder gave values that cannot be stored.
    """
    normalised = [normalise_query(text) for text in texts]
    if not all(normalised):
        raise FeatureError(f"{encoder.name}: a text is empty")
    return [to_stored(rows) for rows in encoder.encode_texts(normalised)]


class _Stream:
    """The rows of one encoder, made of a group of clips at a time."""

    def __init__(self, encoder: VideoEncoder) -> None:
        self._encoder = encoder
        self._group: list[Frames] = []
        self._rows: list[Rows] = []
        self.encode_s = 0.0

    def add(self, clip: ClipFrames) -> None:
        self._group.append(clip.frames)
        count = len(self._group)
        if count == _GROUP_CLIPS or count * clip.frames.nbytes >= _GROUP_BYTES:
            self._encode()

    def finish(self) -> Rows:
        if self._group:
            self._encode()
        return np.concatenate(self._rows)

    def _encode(self) -> None:
        started = time.perf_counter()
        self._rows.append(self._encoder.encode_clips(np.stack(self._group)))
        self._group = []
        self.encode_s += time.perf_counter() - started


def report_of(entry: IndexEntry) -> DecodeReport:
    """The report that `jobs.video_entry` made an entry of; what an imported store lacks is 0."""
    extra = {"bad_packets": 0, "decoded_s": 0.0, "height": 0, "width": 0, **json.loads(entry.extra)}
    parts = tuple(Part(**part) for part in extra.pop("parts", ()))
    return DecodeReport(
        status=entry.status,
        reason=entry.reason,
        duration_s=entry.duration_s,
        n_clips=entry.n_rows,
        n_interpolated=entry.n_interpolated,
        start_s=entry.start_s,
        parts=parts,
        **extra,
    )
