"""Subtitle tracks inside video files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
from av.subtitles.subtitle import SubtitleSet

_HEADER = b"""[Script Info]
ScriptType: v4.00+
[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,16
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def add_track(video: Path, subtitles: Path, target: Path) -> Path:
    """A copy of a video in Matroska with a subtitle file as a track."""
    with (
        av.open(str(video)) as pictures,
        av.open(str(subtitles)) as said,
        av.open(str(target), "w") as container,
    ):
        template = container.add_stream_from_template
        streams = template(pictures.streams.video[0]), template(said.streams.subtitles[0])
        for source, stream in zip((pictures, said), streams, strict=True):
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = stream
                    container.mux(packet)
    return target


def add_mp4_track(video: Path, captions: Sequence[tuple[float, float, str]], target: Path) -> Path:
    """A copy of a video in MP4 with captions (start, end, text) as a track."""
    with av.open(str(video)) as pictures, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(pictures.streams.video[0])
        track = container.add_stream("mov_text")
        track.codec_context.subtitle_header = _HEADER
        for packet in pictures.demux():
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
        for start_s, end_s, text in captions:
            event = f"0,0,Default,,0,0,0,,{text}".encode()
            ticks = [round(time / track.time_base) for time in (start_s, end_s - start_s)]
            packet = track.codec_context.encode_subtitle(
                SubtitleSet.create(event, 0, ticks[1], pts=ticks[0])
            )
            packet.stream, packet.time_base = track, track.time_base
            container.mux(packet)
    return target
