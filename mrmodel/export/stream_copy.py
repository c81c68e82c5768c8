"""Clips without encoding: the packets of a file, from the key frame before a window.

A clip begins at that key frame, and ends where all frames that its last ones are made from are
shown; so it is some seconds longer than the window, but exact copies take no time and lose nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from mrmodel.errors import VideoError
from mrmodel.export.pieces import (
    TOLERANCE_S,
    Piece,
    Span,
    errors_of,
    output_file,
    packets_from,
)
from mrmodel.video.decoder import Decoder, VideoLimits
from mrmodel.video.packet_index import PacketIndex

# Suffix -> FFmpeg's muxer, the most widely played first.
_MUXERS = {".mp4": "mp4", ".mkv": "matroska"}
# Packets of other streams may follow this much later in a file than those of the picture.
_INTERLEAVED_S = 5.0
_RE_ENCODE = "encode it again with --exact"


def suffix_of_copies(video: Path, index: PacketIndex) -> str:
    """``.mp4``, or ``.mkv`` where MP4 has no place for a codec of the file.

    Raises:
        VideoError: nothing of the file can be copied: ``not_copied``.
    """
    if not index.regular:
        rule = "frames without times of their own, or a clock that breaks"
        raise VideoError(video, "not_copied", f"it has {rule}; {_RE_ENCODE}")
    if not index.is_key.any():
        raise VideoError(video, "not_copied", f"it has no key frame; {_RE_ENCODE}")
    codecs = {name for name in (index.video_codec, index.audio_codec) if name}
    for suffix, muxer in _MUXERS.items():
        if codecs <= _codecs_of(muxer):
            return suffix
    rule = f"no container that is written has a place for {' and '.join(sorted(codecs))}"
    raise VideoError(video, "not_copied", f"{rule}; {_RE_ENCODE}")


@cache
def _codecs_of(muxer: str) -> frozenset[str]:
    with av.open(io.BytesIO(), "w", format=muxer) as container:
        return frozenset(container.supported_codecs)


def copy_pieces(target: Path, suffix: str, pieces: Sequence[Piece], title: str) -> list[Span]:
    """Write pieces one after the other to a file.

    Args:
        target: the file; whatever is there is overwritten.
        suffix: of the file in the end, by `suffix_of_copies`.
        pieces: at least one.
        title: for players to show.

    Returns:
        What each piece shows.

    Raises:
        VideoError: a file cannot be read or copied, or the pieces do not fit together.
    """
    chosen = [_chosen(piece) for piece in pieces]
    with output_file(target, _MUXERS[suffix], title) as output:
        several = len({piece.video for piece in pieces}) > 1
        muxer = _Muxer(output, max(one.delay_s for one in chosen), several=several)
        for piece, packets in zip(pieces, chosen, strict=True):
            with errors_of(piece.video, "not_copied", f"; {_RE_ENCODE}"):
                muxer.add(piece, packets)
    return [packets.span for packets in chosen]


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """The packets of a piece.

    Attributes:
        decoding: display time -> decoding time, in ticks from the first.
        first, last: display times of the first and the last packet in the order of storage.
        delay_s: the most by which a packet is displayed after the time in its order.
    """

    span: Span
    decoding: dict[int, int]
    first: int
    last: int
    delay_s: Fraction


def _chosen(piece: Piece) -> _Chosen:
    index = piece.index
    times = index.times_s
    keys = np.flatnonzero(index.is_key)
    before = keys[times[keys] <= piece.start_s + TOLERANCE_S]
    first = int(before[-1] if len(before) else keys[0])
    end_s = piece.end_s - TOLERANCE_S
    last = first
    while True:
        # Later packets in the file that are shown before the end, then before those of them.
        more = np.flatnonzero(times[last + 1 :] < end_s)
        if not len(more):
            break
        last += 1 + int(more[-1])
        end_s = float(times[first : last + 1].max())
    places = np.arange(first, last + 1)
    # Of an open group, frames before the key frame need the group before.
    places = places[times[places] >= times[first]]
    stamps = index.stamps[places]
    in_order = np.sort(stamps)
    # A frame can be shown when it is decoded, at the latest: the order of decoding gets the times
    # of the order of display, moved to the front by what is needed for that.
    delay = int((in_order - stamps).max())
    decoding = zip(stamps.tolist(), (in_order - delay - stamps[0]).tolist(), strict=True)
    later = times[(times > times[places].max()) & index.is_shown]
    span = Span(float(times[first]), float(later.min()) if len(later) else index.end_s)
    return _Chosen(span, dict(decoding), int(stamps[0]), int(stamps[-1]), delay * index.time_base)


class _Muxer:
    """Writes packets of pieces.

    Args:
        output: the file.
        delay_s: the same for all pieces, so that their times go on.
        several: the pieces are of several videos.
    """

    def __init__(self, output: Any, delay_s: Fraction, *, several: bool) -> None:
        self._output, self._several = output, several
        self._delay_s, self._offset_s = delay_s, Fraction(0)
        self._streams: dict[str, Any] = {}
        self._parameters: list[object] | None = None
        self._sound_end: int | None = None

    def add(self, piece: Piece, chosen: _Chosen) -> None:
        """Append a piece."""
        decoder = Decoder(piece.video, VideoLimits())
        with decoder.opened() as container:
            video = decoder.video_stream(container)
            sound = container.streams.best("audio") if piece.index.audio_codec else None
            # A reel is shown as the header of its first piece says.
            turned = _rotation_of(container, video) if self._several else 0
            self._begin(piece, [video, sound] if sound else [video], turned)
            base_s = chosen.first * video.time_base
            length_s = Fraction(chosen.span.end_s - chosen.span.start_s).limit_denominator(10**6)
            for packet in _packets_of(decoder, container, video, chosen):
                if packet.stream_index == video.index:
                    self._add_picture(packet, chosen, length_s)
                elif sound and packet.stream_index == sound.index:
                    self._add_sound(packet, base_s, length_s)
        self._offset_s += length_s

    def _begin(self, piece: Piece, streams: Sequence[Any], turned: int) -> None:
        """Make the streams of the file; those of a later piece must be the same."""
        shown = (piece.index.pixel_aspect, turned)
        parameters = [shown, *(_parameters(stream) for stream in streams)]
        if self._parameters is None:
            for stream in streams:
                made = self._output.add_stream_from_template(stream, opaque=True)
                self._streams[stream.type] = made
            self._parameters = parameters
        elif parameters != self._parameters:
            rule = "its pictures or its sound have another format than those before it"
            raise VideoError(piece.video, "not_copied", f"{rule}; encode all again with --exact")

    def _add_picture(self, packet: Any, chosen: _Chosen, length_s: Fraction) -> None:
        decoding = chosen.decoding.get(packet.pts)
        if decoding is None:
            return
        scale, last = packet.time_base, packet.pts == chosen.last
        offset = round(self._offset_s / scale)
        own_delay = round((self._delay_s - chosen.delay_s) / scale)
        packet.pts += offset - chosen.first
        packet.dts = decoding + offset - own_delay
        if last and self._output.format.name == "mp4":
            # It has durations in the order of decoding; the last one completes their sum.
            packet.duration = round(length_s / scale) - (decoding - min(chosen.decoding.values()))
        packet.stream = self._streams["video"]
        self._output.mux(packet)

    def _add_sound(self, packet: Any, base_s: Fraction, length_s: Fraction) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            return
        scale = packet.time_base
        if not base_s <= stamp * scale < base_s + length_s:
            return
        stamp += round((self._offset_s - base_s) / scale)
        if self._sound_end is not None and stamp < self._sound_end - (packet.duration or 0) // 2:
            return  # The last packet of the piece before reaches into this one.
        packet.pts = packet.dts = stamp
        self._sound_end = stamp + (packet.duration or 1)
        packet.stream = self._streams["audio"]
        self._output.mux(packet)


def _packets_of(decoder: Decoder, container: Any, video: Any, chosen: _Chosen) -> Iterator[Any]:
    """Packets of all streams from those chosen on, and those of the sound a while longer."""
    done_s: float | None = None
    for packet in packets_from(decoder, container, video, chosen.first):
        clock = packet.pts if packet.dts is None else packet.dts
        if clock is None:
            continue
        time_s = float(clock * packet.time_base)
        if packet.stream_index == video.index and packet.pts == chosen.last:
            done_s = time_s
        yield packet
        if done_s is not None and time_s > done_s + _INTERLEAVED_S:
            return


def _rotation_of(container: Any, video: Any) -> int:
    """Degrees by which pictures are turned to be upright; found by decoding the first."""
    for packet in container.demux(video):
        for frame in packet.decode():
            return int(frame.rotation)
    return 0


def _parameters(stream: Any) -> object:
    """What packets of two files must share to be in one stream."""
    context = stream.codec_context
    shared = (context.codec.name, context.extradata, stream.time_base)
    if stream.type == "video":
        return *shared, context.width, context.height, context.pix_fmt
    return *shared, context.sample_rate, context.layout.name
