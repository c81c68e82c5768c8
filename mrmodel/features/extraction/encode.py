"""Encode a video file, or texts, into feature rows, for a store or for serving."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrmodel.encoders.base import TextEncoder, VideoEncoder
from mrmodel.errors import FeatureError
from mrmodel.features.keys import normalise_query
from mrmodel.features.store import Half, to_stored
from mrmodel.video.decoder import VideoLimits
from mrmodel.video.frames import ClipFrames, DecodeReport, FrameSource

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
    source = FrameSource(path, limits)
    groups = _groups(source.clips(clip_len_s, encoder.sampling))
    rows, decode_s, encode_s = [], 0.0, 0.0
    while True:
        started = time.perf_counter()
        group = next(groups, None)
        decoded = time.perf_counter()
        decode_s += decoded - started
        if group is None:
            break
        frames = np.stack([clip.frames for clip in group])
        rows.append(encoder.encode_clips(frames))
        encode_s += time.perf_counter() - decoded
    return EncodedVideo(to_stored(np.concatenate(rows)), source.report, decode_s, encode_s)


def encode_texts(texts: Sequence[str], encoder: TextEncoder) -> list[Half]:
    """Normalise and encode texts: one (n_tokens, dim) array a text.

    Raises:
        FeatureError: a text is empty, or the encoder gave values that cannot be stored.
    """
    normalised = [normalise_query(text) for text in texts]
    if not all(normalised):
        raise FeatureError(f"{encoder.name}: a text is empty")
    return [to_stored(rows) for rows in encoder.encode_texts(normalised)]


def _groups(clips: Iterator[ClipFrames]) -> Iterator[list[ClipFrames]]:
    group: list[ClipFrames] = []
    for clip in clips:
        group.append(clip)
        if len(group) == _GROUP_CLIPS or len(group) * clip.frames.nbytes >= _GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group
