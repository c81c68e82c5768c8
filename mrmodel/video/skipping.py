"""Skips decoding of frames that are not needed and not referenced by other frames.

Two frames per second are a fifteenth of a video. In H.264 usually about half of all frames are
non-reference frames, which the decoder can skip without affecting others. That must be decided
before it gets the packet, when the frames displayed before and after may still be unknown: hence a
short look-ahead; in doubt a frame is decoded.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

# In packets; exceeds H.264's maximum reordering between storage and display.
_LOOK_AHEAD = 20
# In other codecs "non-reference" means less (HEVC: only within a temporal layer).
_CODECS = frozenset({"h264"})

# (start_s, end_s), which include a frame's display interval -> whether it is needed.
Wanted = Callable[[float, float], bool]


class Skipping:
    """Decides which packets the decoder may skip.

    Args:
        codec: its name in FFmpeg.
        wanted: see `Wanted`.
    """

    def __init__(self, codec: str, wanted: Wanted) -> None:
        self._possible = codec in _CODECS
        self._wanted = wanted
        self._time_of: Callable[[int], float] | None = None
        self._stamps: list[int] = []  # of packets not known to be displayed yet
        self._left_out: dict[int, int] = {}  # time stamp -> duration

    def begin(self, time_of: Callable[[int], float], interlaced: bool) -> None:
        """Start skipping; called after the first frame was decoded.

        Args:
            time_of: converts a time stamp to seconds.
            interlaced: disables skipping, because a frame may be two packets.
        """
        if self._possible and not interlaced:
            self._time_of = time_of

    def end(self) -> None:
        """Stop skipping."""
        self._possible, self._time_of = False, None

    def look_ahead(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Yield the same packets, each once the next ones are known."""
        ahead: deque[Any] = deque()
        for packet in packets:
            if packet.pts is None:
                self.end()  # The packets do not determine the display order.
            elif not packet.is_discard:
                insort(self._stamps, packet.pts)
            ahead.append(packet)
            if len(ahead) > _LOOK_AHEAD:
                yield ahead.popleft()
        yield from ahead

    def may_skip(self, packet: Any) -> bool:
        """Whether the packet's frame is not needed."""
        if self._time_of is None or packet.is_discard:
            return False
        after = bisect_right(self._stamps, packet.pts)
        if after == len(self._stamps):
            return False  # The last frame represents all later times.
        start_s, end_s = self._time_of(packet.pts), self._time_of(self._stamps[after])
        return not self._wanted(start_s, end_s)

    def leave_out(self, packet: Any) -> None:
        """Record a packet as skipped; the decoder outputs a reference frame nevertheless."""
        self._left_out[packet.pts] = packet.duration or 0

    def before(self, stamp: int | None) -> list[tuple[int, int]]:
        """(time stamp, duration) of skipped frames displayed before the frame at `stamp`.

        With None (a frame without time stamp) there are none.
        """
        if stamp is None:
            return []
        self._left_out.pop(stamp, None)
        found = sorted(item for item in self._left_out.items() if item[0] < stamp)
        for early, _ in found:
            del self._left_out[early]
        del self._stamps[: bisect_left(self._stamps, stamp)]
        return found

    def rest(self) -> list[tuple[int, int]]:
        """(time stamp, duration) of skipped frames after the last decoded frame."""
        return sorted(self._left_out.items())
