"""Subtitle tracks inside a video file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from mrmodel.errors import VideoError
from mrmodel.video.decoder import Decoder, VideoLimits

# What FFmpeg decodes to text; the others are pictures of text.
_TEXT_CODECS = frozenset({"ass", "ssa", "subrip", "srt", "mov_text", "webvtt", "text"})
# Fields of an event before its text, as FFmpeg writes it: order, layer, style, name, three margins
# and an effect.
_FIELDS_BEFORE_TEXT = 8
# What an event takes besides its text.
_EVENT_BYTES = 64


def read_subtitle_tracks(path: Path, most_bytes: int) -> Iterator[tuple[float, float, str]]:
    """Start and end in a player's seconds, and ASS text, of each event of all text tracks.

    A file without one is not read beyond its header. Of a video in S3 all is read.

    Args:
        path: a video file, or a pointer to one in S3.
        most_bytes: of all events together; a small file may hold gigabytes of them, compressed.

    Raises:
        VideoError: the file cannot be opened or read, or has longer tracks (``too_long``).
    """
    n_bytes = 0
    with Decoder(path, VideoLimits()).opened() as container:
        tracks = [one for one in container.streams.subtitles if _is_text(one)]
        if not tracks:
            return
        begin_s = float((container.start_time or 0) / av.time_base)
        for packet in container.demux(tracks):
            if packet.pts is None or not packet.size:
                continue
            n_bytes += packet.size + _EVENT_BYTES
            if n_bytes > most_bytes:
                rule = f"its subtitles have more than {most_bytes >> 20} MB"
                raise VideoError(path, "too_long", rule)
            start_s = float(packet.pts * packet.time_base) - begin_s
            length_s = float((packet.duration or 0) * packet.time_base)
            for text in _texts(packet):
                yield max(start_s, 0.0), max(start_s + length_s, 0.0), text


def _is_text(stream: Any) -> bool:
    return stream.codec_context is not None and stream.codec_context.name in _TEXT_CODECS


def _texts(packet: Any) -> list[str]:
    """The texts of a packet; a damaged one has none."""
    try:
        found = [one for one in packet.decode() if hasattr(one, "ass")]
    except av.error.FFmpegError:
        return []
    fields = [one.ass.decode(errors="replace").split(",", _FIELDS_BEFORE_TEXT) for one in found]
    return [one[-1] for one in fields if len(one) > _FIELDS_BEFORE_TEXT]
