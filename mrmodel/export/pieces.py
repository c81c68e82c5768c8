"""Pieces of videos, as files of clips are made of: from when to when, and from which file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from mrmodel.errors import VideoError, is_of_the_machine
from mrmodel.video.decoder import Decoder, VideoLimits
from mrmodel.video.packet_index import PacketIndex, index_packets

# A time that a search computed, or that a file has in milliseconds, may be off by this much.
TOLERANCE_S = 1e-3
# Sound lies a little before or after its pictures in a file.
_INTERLEAVED_S = 1.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A window of a video.

    Attributes:
        video: the file.
        index: its packets.
        start_s, end_s: in a player's seconds.
    """

    video: Path
    index: PacketIndex
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Span:
    """What of a video a clip shows, in a player's seconds: from its first frame to its end."""

    start_s: float
    end_s: float


def frames_on_screen(start_s: float, end_s: float, rate: Fraction) -> tuple[int, int]:
    """Numbers of the first frame on the screen during a window, and of the first after it."""
    first = math.floor((start_s + TOLERANCE_S) * rate)
    return first, max(math.ceil((end_s - TOLERANCE_S) * rate), first + 1)


def index_video(video: Path) -> PacketIndex:
    """The packets of a video; see `index_packets`."""
    return index_packets(Decoder(video, VideoLimits()))


@contextmanager
def errors_of(video: Path, code: str, advice: str = "") -> Iterator[None]:
    """Turn FFmpeg's errors about a video into a VideoError; those of a full disk are OSErrors.

    Args:
        video: the file.
        code: of the VideoError.
        advice: what the user can do, as the end of a sentence.
    """
    try:
        yield
    except av.error.FFmpegError as error:
        plain = OSError(error.errno, error.strerror)
        if is_of_the_machine(plain):
            raise plain from error
        detail = f"{error.strerror}{advice}"
        raise VideoError(video, code, detail) from error


@contextmanager
def output_file(target: Path, muxer: str, title: str) -> Iterator[Any]:
    """A new file of video; on an error it is closed and remains incomplete.

    Args:
        target: the file; whatever is there is overwritten.
        muxer: FFmpeg's name of the container.
        title: for players to show.
    """
    # The index at the start: players begin before they have all of the file.
    options = {"movflags": "+faststart"} if muxer == "mp4" else {}
    output = av.open(str(target.absolute()), "w", format=muxer, container_options=options)
    output.metadata["title"] = title
    try:
        yield output
    except BaseException:
        with suppress(av.error.FFmpegError):
            output.close()
        raise
    with errors_of(target, "not_written"):
        output.close()


def packets_from(decoder: Decoder, container: Any, stream: Any, stamp: int) -> Iterator[Any]:
    """Packets of all streams, from about a second before that of `stream` with a time stamp.

    Args:
        decoder: of the file.
        container: opened by it.
        stream: its video stream.
        stamp: display time of a packet of `stream`, in ticks.
    """
    before = stamp - int(_INTERLEAVED_S / stream.time_base)
    with suppress(av.error.FFmpegError):  # It cannot be sought in: it is read from the start.
        container.seek(before, stream=stream)
    packets = decoder.packets(container)
    ahead = []
    for packet in packets:
        ahead.append(packet)
        if packet.stream_index != stream.index or not packet.size:
            continue
        clock = packet.pts if packet.dts is None else packet.dts
        if clock is None or clock > stamp:
            # The index of the file led past it.
            container.seek(0 if container.start_time is None else container.start_time)
            ahead = []
        break
    yield from ahead
    yield from packets
