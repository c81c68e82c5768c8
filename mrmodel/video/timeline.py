"""Time stamps of packets, checked before they are used.

Recorders restart their clock, transport streams are joined by ``cat``, and some streams have no
time stamps. Here packets get the times that a player shows: parts are laid end to end, gaps that
only the clock made are closed, and senseless stamps are removed.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import av
from av.container import Flags as ContainerFlags
from av.format import Flags
from av.stream import Discard, Disposition

# Formats in which FFmpeg expects interrupted clocks, or none; beside them Flash video.
_BREAKABLE_FLAGS = Flags.ts_discont.value | Flags.no_timestamps.value
_FLASH = "flv"
# Their packets have decoding times of their own. Of others FFmpeg computes them from the display
# times, and not reliably so after a step back.
_OWN_DECODING_TIMES = ("mpegts", "mpeg", "flv", "live_flv", "mov,mp4,m4a,3gp,3g2,mj2")
# They have an index, and a clock that does not break.
_INDEXED = ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2")
# AVI has decoding times only. Of these codecs FFmpeg passes them off as display times.
_REORDERED_CODECS = ("h264", "hevc", "vvc")
# A smaller step back is jitter, as in FFmpeg's own check.
_JITTER_S = 0.1
# In packets; H.264's maximum reordering between storage and display.
_REORDERING = 16
# After few packets with wrong stamps the clock goes on within this time as if nothing were.
_RETURN_S = 1.0
_FEW = 3
# Field pairs share a stamp; three packets never do.
_FROZEN = 3
# Frames per second where a stream states none, as in FFmpeg.
_RATE = 25.0


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the file whose time stamps go on without a break.

    Attributes:
        start_s: its start in seconds, in our times.
        offset_s: our times minus the file's time stamps, both from the start of the first part.
    """

    start_s: float
    offset_s: float


class Timeline:
    """The packets of one stream, with time stamps that move forward.

    The attributes are final after `packets` is exhausted.

    Args:
        container, stream: opened by PyAV.
        max_gap_s: in formats with a breakable clock a longer gap is closed, unless packets of
            another stream run through it.

    Attributes:
        parts: one, or one for each stretch between two breaks.
        unstamped: packets whose time stamps were senseless and have been removed.
        by_decoding_time: frames have to be timed by their decoding times.
        by_rate: the format has no time stamps, and FFmpeg makes them by the frame rate.
        n_packets: packets of the stream.
        read_to: the file's first byte after all packets, 0 if unknown.
        period, period_s: one frame by the stream's frame rate, in ticks and in seconds.
    """

    def __init__(self, container: Any, stream: Any, max_gap_s: float) -> None:
        name, flags = container.format.name, container.format.flags
        self._index, self._scale = stream.index, float(stream.time_base)
        self._breakable = bool(flags & _BREAKABLE_FLAGS) or name == _FLASH
        self.by_rate = bool(flags & Flags.no_timestamps.value)
        self._own_decoding_times = name in _OWN_DECODING_TIMES
        self._max_gap_s = max_gap_s
        context = stream.codec_context
        self.by_decoding_time = (
            name == "avi" and context.name in _REORDERED_CODECS and bool(context.has_b_frames)
        )
        self.period_s = 1 / float(stream.guessed_rate or stream.average_rate or _RATE)
        self.period = round(self.period_s / self._scale)
        self._start = None if self.by_decoding_time else stream.start_time
        self._others = _Others(max_gap_s)
        self.parts = [Part(0.0, 0.0)]
        self.unstamped = 0
        self.n_packets = self.read_to = 0
        self._offset = 0
        self._discarded = False  # the current part, by a demuxer that does not expect it
        self._end: int | None = None
        # Of the current part: the latest decoding time and the latest display times.
        self._clock: int | None = None
        self._latest: list[int] = []

    @property
    def length_s(self) -> float:
        """Seconds from the start of the stream to the end of its last packet so far."""
        return 0.0 if self._end is None else (self._end - (self._start or 0)) * self._scale

    @property
    def goes_on(self) -> bool:
        """Whether another video stream lies before or after all packets of this one."""
        return self._others.is_apart()

    def reached_s(self) -> float:
        """The latest end of a packet of any stream, by the file's time stamps."""
        own_s = self.length_s + (self._start or 0) * self._scale
        return max([own_s, *self._others.ends_s()])

    def packets(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Yield the stream's packets, in order; those at a break only once the next are known.

        Args:
            packets: of all streams of the container.
        """
        held: list[Any] = []
        joins = False
        before: tuple[int, list[int]] | None = None
        for packet in self._without_frozen(self._own(packets)):
            returns = before is not None and len(held) <= _FEW and self._returns(packet, before[0])
            if returns:
                assert before is not None
                # A few packets with wrong stamps, and no new part.
                self._clock, self._latest = before
                yield from map(self._shifted, map(self._unstamp, held))
                held, before = [], None
            step = None if returns else self._step(packet)
            if step is None:
                self._note(packet)
                if before is None:
                    yield self._shifted(packet)
                    continue
            else:
                yield from self._placed(held, joins=joins)
                held, joins = [], step
                assert self._clock is not None
                before = self._clock, list(self._latest)
                if joins:
                    self._clock, self._latest = None, []
                self._note(packet)
            held.append(packet)
            if len(held) > _REORDERING:
                yield from self._placed(held, joins=joins)
                held, before = [], None
        yield from self._placed(held, joins=joins)

    def _own(self, packets: Iterable[Any]) -> Iterator[Any]:
        for packet in packets:
            self.read_to = max(self.read_to, (packet.pos or 0) + packet.size)
            if packet.stream_index != self._index:
                self._others.note(packet)
            elif packet.size:  # an empty packet would signal the end of the file to the decoder
                self._others.passed()
                self.n_packets += 1
                if self.by_decoding_time:
                    packet.pts = None
                yield packet

    def _without_frozen(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Remove the time stamps of packets that repeat that of the packets before them."""
        run: list[Any] = []  # at most the first two of one stamp
        stamp, length = None, 0
        for packet in packets:
            if packet.pts is None or packet.pts != stamp:
                yield from run
                run, stamp, length = [packet], packet.pts, 1
                continue
            length += 1
            if length < _FROZEN:
                run.append(packet)
                continue
            yield from run[:1]
            yield from map(self._unstamp, [*run[1:], packet])
            run = []
        yield from run

    def _unstamp(self, packet: Any) -> Any:
        packet.pts = packet.dts = None
        self.unstamped += 1
        return packet

    def _step(self, packet: Any) -> bool | None:
        """Whether a new part starts at a packet; False: a gap is kept; None: neither."""
        clock, last = packet.dts, self._clock
        if clock is None or last is None:
            return None
        if clock < last or (clock == last and self._own_decoding_times):
            return True if self._goes_back(packet, last) else None
        if (clock - last) * self._scale <= self._max_gap_s:
            return None
        return self._breakable and not self._others.run_through(
            last * self._scale, clock * self._scale
        )

    def _goes_back(self, packet: Any, last: int) -> bool:
        """Whether this is more than reordering for display, and more than jitter."""
        back_s = float(last - packet.dts) * self._scale
        if not self._latest:
            return back_s > _JITTER_S
        stamp = packet.dts if packet.pts is None else packet.pts
        if packet.is_keyframe and stamp <= self._latest[-1]:
            return True
        if len(self._latest) > _REORDERING and stamp < self._latest[0]:
            return True
        return self._own_decoding_times and back_s > _JITTER_S

    def _returns(self, packet: Any, last: int) -> bool:
        """Whether a packet goes on where the clock was before a jump."""
        if packet.dts is None or self._clock is None:
            return False
        elsewhere_s = abs(packet.dts - self._clock) * self._scale
        forward_s = (packet.dts - last) * self._scale
        return bool(
            elsewhere_s > max(2 * _JITTER_S, 2 * self.period_s)
            and 0 < forward_s <= max(_RETURN_S, 2 * self.period_s)
        )

    def _note(self, packet: Any) -> None:
        if packet.dts is not None and (self._clock is None or packet.dts > self._clock):
            self._clock = packet.dts
        if packet.pts is not None:
            insort(self._latest, packet.pts)
            del self._latest[: -_REORDERING - 1]

    def _placed(self, packets: list[Any], *, joins: bool) -> Iterator[Any]:
        """The first packets of a part, or those after a gap that is kept."""
        if joins:
            self._discarded = all(packet.is_discard for packet in packets)
            packets = [self._kept(packet) for packet in packets]
        stamps = [_stamp(packet) for packet in packets if not packet.is_discard]
        known = [stamp for stamp in stamps if stamp is not None]
        if joins and known and self._end is not None:
            # The part is displayed from where the one before it ends.
            self._offset = self._end - min(known)
            self.parts.append(Part(self.length_s, self._offset * self._scale))
        yield from map(self._shifted, packets)

    def _kept(self, packet: Any) -> Any:
        """The packet, or in a discarded part a copy that the decoder does not discard."""
        if not self._discarded or not packet.is_discard:
            return packet
        copy = av.Packet(bytes(packet))
        for name in ("pts", "dts", "duration", "time_base", "stream", "is_keyframe"):
            setattr(copy, name, getattr(packet, name))
        return copy

    def _shifted(self, packet: Any) -> Any:
        packet = self._kept(packet)
        if self._offset and packet.pts is not None:
            packet.pts += self._offset
        if self._offset and packet.dts is not None:
            packet.dts += self._offset
        if not packet.is_discard:
            self._extend(_stamp(packet), packet.duration or 0)
        return packet

    def _extend(self, stamp: int | None, duration: int) -> None:
        if self._start is None:
            self._start = stamp or 0
        if stamp is None:
            stamp = self._start if self._end is None else self._end
            duration = duration or self.period
        elif self._end is not None:
            duration = duration or self.period
        # A single picture without a duration is shown as long as the header says.
        end = stamp + duration
        self._end = end if self._end is None else max(end, self._end)


class _Others:
    """Clocks of the other streams of a file.

    Args:
        max_gap_s: a stream without packets for longer is interrupted.
    """

    def __init__(self, max_gap_s: float) -> None:
        self._max_gap_s = max_gap_s
        self._runs: dict[int, tuple[float, float]] = {}  # stream -> first and last time in seconds
        self._ends_s: dict[int, float] = {}
        self._scales: dict[int, float] = {}  # seconds of a tick
        # Other video streams: packets, and places between packets of that one where they lie.
        self._since: set[int] = set()
        self._packets: Counter[int] = Counter()
        self._places: Counter[int] = Counter()

    def note(self, packet: Any) -> None:
        """Take notice of a packet."""
        index = packet.stream_index
        if packet.size and packet.stream.type == "video" and not is_cover(packet.stream):
            self._since.add(index)
            self._packets[index] += 1
        clock = packet.pts if packet.dts is None else packet.dts
        if clock is None:
            return
        if index not in self._scales:
            self._scales[index] = float(packet.time_base)
        scale = self._scales[index]
        time_s = clock * scale
        first_s, last_s = self._runs.get(index, (time_s, time_s))
        if not -1.0 <= time_s - last_s <= self._max_gap_s:
            first_s = time_s
        self._runs[index] = first_s, time_s
        end_s = time_s + (packet.duration or 0) * scale
        self._ends_s[index] = max(end_s, self._ends_s.get(index, end_s))

    def passed(self) -> None:
        """Take notice of a packet of the stream that is read."""
        if self._since:
            self._places.update(self._since)
            self._since.clear()

    def is_apart(self) -> bool:
        """Whether another video stream lies before or after the one that is read.

        The last packets of a part come late, as nothing tells that they are whole.
        """
        return any(
            count > _REORDERING and self._places[index] <= 2
            for index, count in self._packets.items()
        )

    def run_through(self, start_s: float, end_s: float) -> bool:
        """Whether a stream has packets all through an interval; streams are loosely interleaved."""
        slack_s = self._max_gap_s / 2
        return any(
            first_s <= start_s + slack_s and last_s >= end_s - slack_s
            for first_s, last_s in self._runs.values()
        )

    def ends_s(self) -> Iterable[float]:
        """The latest end of each stream."""
        return self._ends_s.values()


def is_cover(stream: Any) -> bool:
    """Whether a video stream is a cover picture, of a file of sound for example."""
    return bool(stream.disposition & Disposition.attached_pic)


def read_shortly(container: Any, stream: Any, max_gap_s: float) -> bool:
    """Leave out packets that do not decide the length of a stream whose clock goes forward.

    These are the packets of other streams and, where an index or the headers of packets show that
    the clock goes forward, those before the last ones. What lies behind the last entry of an index
    is read: the index of a file may be incomplete.

    Returns:
        False: the file has to be opened again and read as a whole.
    """
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    name = container.format.name
    try:
        if name == "mpegts":
            return _skip_by_headers(container, stream, max_gap_s)
        if name in _INDEXED and stream.start_time is not None:
            return _skip_by_index(container, stream)
    except av.error.FFmpegError:
        return False
    return True


def _skip_by_index(container: Any, stream: Any) -> bool:
    container.seek(stream.start_time, stream=stream)  # Matroska reads its index when asked.
    places = [(entry.timestamp, entry.pos) for entry in stream.index_entries]
    if len(places) > _REORDERING:
        container.seek(places[-_REORDERING][0], stream=stream)
    return all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(places))


def _skip_by_headers(container: Any, stream: Any, max_gap_s: float) -> bool:
    """Read a transport stream without FFmpeg's parser, which takes half of the time.

    A packet is then what has a header, mostly a frame; only the last ones have to be exact. FFmpeg
    starts and stops to parse at a seek.
    """
    plain, most = container.flags, max_gap_s / float(stream.time_base)
    container.flags |= (ContainerFlags.no_parse | ContainerFlags.no_fillin).value
    container.seek(0, unsupported_byte_offset=True)
    clock: int | None = None
    places: deque[int] = deque([0], maxlen=4 * _REORDERING)
    for packet in container.demux(stream):
        if packet.dts is None:
            continue
        if clock is not None and not 0 < packet.dts - clock <= most:
            return False
        clock = packet.dts
        places.append(packet.pos)
    container.flags = plain
    container.seek(places[0], unsupported_byte_offset=True)
    return True


def _stamp(packet: Any) -> int | None:
    stamp: int | None = packet.dts if packet.pts is None else packet.pts
    return stamp
