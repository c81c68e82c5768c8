"""Clips that are encoded again: exact to the frame, in a form that every player shows.

H.264 in 4:2:0 with upright, square pixels, and AAC, in MP4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

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

# Visually lossless; a slower preset gains a tenth of the bytes.
_PICTURE = {"preset": "veryfast", "crf": "18"}
_SOUND_BITS, _SOUND_RATE, _LAYOUT = 160_000, 48_000, "stereo"
# Ticks a second where frame rates vary or differ.
_TICKS = 90_000
# Sound that is off by less follows the clock of another device.
_LEAST_GAP_S = 0.05
# Sound may lie this much later in a file than its picture.
_INTERLEAVED_S = 5.0


def encode_pieces(target: Path, pieces: Sequence[Piece], title: str) -> list[Span]:
    """Write pieces one after the other to an MP4 file; whatever is there is overwritten.

    Pieces of another size than the first are fitted into its size.

    Args:
        target: the file.
        pieces: at least one.
        title: for players to show.

    Returns:
        What each piece shows.

    Raises:
        VideoError: a file cannot be read or decoded.
    """
    spans = [_span(piece) for piece in pieces]
    with output_file(target, "mp4", title) as output:
        encoder = _Encoder(output, pieces)
        for piece, span in zip(pieces, spans, strict=True):
            with errors_of(piece.video, "not_encoded"):
                encoder.add(piece, span)
        with errors_of(pieces[-1].video, "not_encoded"):
            encoder.finish()
    return spans


def has_sound(piece: Piece) -> bool:
    """Whether the sound of a piece is encoded, too."""
    return bool(piece.index.audio_codec) and piece.index.regular


def _span(piece: Piece) -> Span:
    """The frames on the screen during a window. One that stays longer than a frame is cut."""
    times = piece.index.frame_times_s()
    period_s = 1 / float(piece.index.rate)
    first = max(int(np.searchsorted(times, piece.start_s + TOLERANCE_S, "right")) - 1, 0)
    after = max(int(np.searchsorted(times, piece.end_s - TOLERANCE_S, "left")), first + 1)
    start_s = float(times[first])
    if start_s < piece.start_s - period_s:
        start_s = piece.start_s
    end_s = float(times[after]) if after < len(times) else piece.index.end_s
    if end_s > piece.end_s + period_s:
        end_s = max(piece.end_s, start_s + period_s)
    return Span(start_s, end_s)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A frame of picture or sound, and its time in a player's seconds."""

    kind: Literal["video", "audio"]
    time_s: float
    frame: Any


def decode_span(piece: Piece, span: Span) -> Iterator[Decoded]:
    """The pictures on the screen during a span, in order, and at least the sound of it.

    Files that are not regular are read from their start, and without their sound.
    """
    if piece.index.regular:
        yield from _decode_regular(piece, span)
        return
    decoder = Decoder(piece.video, VideoLimits())

    def wanted(start_s: float, end_s: float) -> bool:
        late_s = decoder.late_s
        return end_s + late_s > span.start_s - TOLERANCE_S and start_s + late_s < span.end_s

    screen = _Screen(span)
    for frame in decoder.frames(wanted):
        if frame.picture is not None:
            yield from screen.add(frame.time_s + decoder.late_s, frame.picture)
        if screen.is_over:
            break
    yield from screen.rest()


def _decode_regular(piece: Piece, span: Span) -> Iterator[Decoded]:
    index, screen = piece.index, _Screen(span)
    decoder = Decoder(piece.video, VideoLimits())
    keys = np.flatnonzero(index.is_key & (index.times_s <= span.start_s + TOLERANCE_S))
    first = int(index.stamps[keys[-1] if len(keys) else 0])
    with decoder.opened() as container:
        video = decoder.video_stream(container)
        video.codec_context.thread_count = 0
        sound = container.streams.best("audio") if index.audio_codec else None
        begun = False
        for packet in packets_from(decoder, container, video, first):
            if packet.stream_index == video.index:
                begun = begun or packet.pts == first or not packet.size
                for frame in _frames(packet) if begun else ():
                    yield from screen.add(_time_s(frame, video, index.origin_s), frame)
            elif sound is not None and packet.stream_index == sound.index:
                for frame in _frames(packet):
                    time_s = _time_s(frame, sound, index.origin_s)
                    yield Decoded("audio", time_s, frame)
            if screen.is_over and (sound is None or _is_past(packet, index, span)):
                break
    yield from screen.rest()


def _frames(packet: Any) -> list[Any]:
    """The frames that a decoder gives for a packet; a damaged one costs its own frames alone."""
    try:
        return [frame for frame in packet.decode() if frame.pts is not None]
    except av.error.FFmpegError:
        return []


def _time_s(frame: Any, stream: Any, origin_s: Fraction) -> float:
    return float(frame.pts * stream.time_base - origin_s)


def _is_past(packet: Any, index: PacketIndex, span: Span) -> bool:
    """Whether no sound of the span follows a packet in the file."""
    clock = packet.pts if packet.dts is None else packet.dts
    if clock is None:
        return False
    time_s = float(clock * packet.time_base - index.origin_s)
    is_sound = packet.stream.type == "audio"
    return time_s > span.end_s + (0.0 if is_sound else _INTERLEAVED_S)


class _Screen:
    """Chooses the pictures that are on the screen during a span."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._held: Decoded | None = None
        self.is_over = False

    def add(self, time_s: float, picture: Any) -> Iterator[Decoded]:
        """Take the next picture, in order; yield those that are known to be shown."""
        decoded = Decoded("video", time_s, picture)
        if time_s <= self._span.start_s + TOLERANCE_S:
            self._held = decoded
            return
        yield from self.rest()
        self.is_over = time_s >= self._span.end_s - TOLERANCE_S
        if not self.is_over:
            yield decoded

    def rest(self) -> Iterator[Decoded]:
        """The picture that was on the screen at the start, once."""
        held, self._held = self._held, None
        if held is not None and not self.is_over:
            yield held


class _Encoder:
    """The streams of the file; made with the first picture, whose size they have."""

    def __init__(self, output: Any, pieces: Sequence[Piece]) -> None:
        self._output = output
        rates = {piece.index.rate if piece.index.constant else None for piece in pieces}
        constant = rates.pop() if len(rates) == 1 else None
        self._rate = constant or pieces[0].index.rate
        # A picture begins at a multiple of this: at a constant rate, frames are not off by ticks.
        self._step_s = Fraction(1, _TICKS) if constant is None else 1 / constant
        self._time_base = Fraction(1, self._step_s.denominator)
        self._has_sound = any(map(has_sound, pieces))
        self._video: Any = None
        self._sound: _Sound | None = None
        self._offset_s = Fraction(0)
        self._last = -1  # stamp of a picture
        self._begins: int | None = None  # decoding time of the first packet
        self._held: Any = None  # the latest packet
        self._filter: _Filter | None = None

    def add(self, piece: Piece, span: Span) -> None:
        """Append a piece."""
        waiting: list[Decoded] = []
        n_pictures = 0
        for decoded in decode_span(piece, span):
            if decoded.kind == "video":
                self._add_picture(decoded, span, piece.index.pixel_aspect)
                n_pictures += 1
            else:
                waiting.append(decoded)
            if self._sound is not None:
                for one in waiting:
                    self._sound.add(one, span, self._offset_s)
                waiting = []
        if not n_pictures:
            raise VideoError(piece.video, "not_encoded", "no frame of the window can be decoded")
        self._offset_s += self._in_steps(span.end_s - span.start_s)
        if self._sound is not None:
            self._sound.fill(self._offset_s)

    def finish(self) -> None:
        """Write what the encoders hold back."""
        self._mux(self._video.encode(None))
        # The container has durations in the order of decoding; the last one completes their sum.
        end = round(self._offset_s / self._held.time_base)
        self._held.duration = end - (self._held.dts - self._begins)
        self._output.mux(self._held)
        if self._sound is not None:
            self._sound.finish()

    def _add_picture(self, decoded: Decoded, span: Span, aspect: Fraction) -> None:
        if self._filter is None or not self._filter.fits(decoded.frame, aspect):
            size = None if self._video is None else (self._video.width, self._video.height)
            self._filter = _Filter(decoded.frame, aspect, size)
        picture = self._filter.apply(decoded.frame)
        if self._video is None:
            self._begin(picture)
        time_s = self._in_steps(max(decoded.time_s, span.start_s) - span.start_s)
        stamp = int((self._offset_s + time_s) / self._time_base)
        if stamp <= self._last:
            return
        self._last = stamp
        picture.pts, picture.time_base = stamp, self._time_base
        picture.pict_type = PictureType.NONE  # The encoder decides anew.
        self._mux(self._video.encode(picture))

    def _in_steps(self, seconds: float) -> Fraction:
        return round(seconds / self._step_s) * self._step_s

    def _begin(self, picture: Any) -> None:
        self._video = self._output.add_stream("libx264", rate=self._rate, options=dict(_PICTURE))
        self._video.width, self._video.height = picture.width, picture.height
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = self._time_base
        if self._has_sound:
            self._sound = _Sound(self._output)

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            if self._held is not None:
                self._output.mux(self._held)
            self._held = packet
            self._begins = packet.dts if self._begins is None else self._begins


class _Filter:
    """Pictures as they are encoded: upright, square pixels, even sides, 4:2:0.

    Args:
        frame: one of the frames; others are of its size and format.
        aspect: width of a pixel by its height.
        size: (width, height) into which they are fitted; None: their own.
    """

    def __init__(self, frame: Any, aspect: Fraction, size: tuple[int, int] | None) -> None:
        self._kind = self._kind_of(frame, aspect)
        self._graph = av.filter.Graph()
        chain = [
            self._graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=Fraction(1, _TICKS),  # The times of these frames are not used.
            )
        ]
        for name, options in self._steps(frame, aspect, size):
            chain.append(self._graph.add(name, options))
        chain.append(self._graph.add("buffersink"))
        self._graph.link_nodes(*chain).configure()

    def fits(self, frame: Any, aspect: Fraction) -> bool:
        """Whether a frame is of the kind that the filter was made for."""
        return self._kind_of(frame, aspect) == self._kind

    def apply(self, frame: Any) -> Any:
        """The picture."""
        self._graph.vpush(frame)
        return self._graph.vpull()

    @staticmethod
    def _kind_of(frame: Any, aspect: Fraction) -> tuple[object, ...]:
        return frame.width, frame.height, frame.format.name, frame.rotation, aspect

    @staticmethod
    def _steps(
        frame: Any, aspect: Fraction, size: tuple[int, int] | None
    ) -> Iterator[tuple[str, str]]:
        if aspect != 1:
            yield "scale", f"{round(frame.width * aspect)}:{frame.height}"
        # The file's angle is counter-clockwise.
        turns = round(frame.rotation / 90) % 4
        if turns == 2:
            yield "hflip", ""
            yield "vflip", ""
        elif turns:
            yield "transpose", "cclock" if turns == 1 else "clock"
        if size is None:
            yield "crop", "floor(iw/2)*2:floor(ih/2)*2:0:0"
        else:
            width, height = size
            yield "scale", f"{width}:{height}:force_original_aspect_ratio=decrease"
            yield "pad", f"{width}:{height}:-1:-1"
        yield "setsar", "1"
        yield "format", "yuv420p"


class _Sound:
    """The sound of the file: as long as its pictures, with silence where there is none."""

    def __init__(self, output: Any) -> None:
        self._output = output
        self._stream = output.add_stream("aac", rate=_SOUND_RATE, layout=_LAYOUT)
        self._stream.bit_rate = _SOUND_BITS
        self._written = 0  # samples
        self._resampler: tuple[object, Any] | None = None
        self._follows = False

    def add(self, decoded: Decoded, span: Span, offset_s: Fraction) -> None:
        """Append what a frame has of a span that starts after `offset_s` seconds of the file."""
        frame = decoded.frame
        frame.time_base = Fraction(1, frame.sample_rate)
        frame.pts = round(decoded.time_s * frame.sample_rate)
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        if self._resampler is None or self._resampler[0] != kind:
            made = av.AudioResampler(format="fltp", layout=_LAYOUT, rate=_SOUND_RATE)
            self._resampler = kind, made
        begin_s = float(offset_s) - span.start_s
        end = round((begin_s + span.end_s) * _SOUND_RATE)
        for ready in self._resampler[1].resample(frame):
            start_s = float(ready.pts * ready.time_base) + begin_s
            self._add_samples(ready.to_ndarray(), round(start_s * _SOUND_RATE), end)

    def fill(self, until_s: Fraction) -> None:
        """Add silence up to a time; what comes next does not follow what was."""
        self._silence(round(until_s * _SOUND_RATE))
        self._resampler, self._follows = None, False

    def finish(self) -> None:
        """Write what the encoder holds back."""
        self._output.mux(self._stream.encode(None))

    def _add_samples(self, samples: NDArray[np.float32], start: int, end: int) -> None:
        if self._follows and abs(start - self._written) < _LEAST_GAP_S * _SOUND_RATE:
            start = self._written
        if start >= end:
            return
        self._silence(start)
        samples = samples[:, self._written - start : end - start]
        if samples.shape[1]:
            self._write(samples)
            self._follows = True

    def _silence(self, until: int) -> None:
        while self._written < until:
            length = min(until - self._written, _SOUND_RATE)
            self._write(np.zeros((2, length), np.float32))

    def _write(self, samples: NDArray[np.float32]) -> None:
        made = np.ascontiguousarray(samples)
        frame = av.AudioFrame.from_ndarray(made, format="fltp", layout=_LAYOUT)
        frame.sample_rate, frame.time_base = _SOUND_RATE, Fraction(1, _SOUND_RATE)
        frame.pts = self._written
        self._written += samples.shape[1]
        self._output.mux(self._stream.encode(frame))
