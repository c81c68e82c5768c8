"""Frames that need not be decoded: nobody looks at them, and no other frame is made from them.

Two frames a second are a fifteenth of a video. In H.264 about half of all frames are usually
non-reference ones; the decoder can leave such a frame out without a change in any other. It has to
be told before it gets the packet, when the frames that are shown before and after may not have been
seen: hence a short look ahead, and in doubt a frame is decoded.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

# Packets: more than H.264 lets frames move between the order of storage and of display.
_LOOK_AHEAD = 20
# In other codecs "non-reference" means less (HEVC: only within a temporal layer).
_CODECS = frozenset({"h264"})

# (start_s, end_s): when a frame is shown, or longer -> whether anybody looks at it.
Wanted = Callable[[float, float], bool]


class Skipping:
    """Decides, packet by packet, which ones the decoder may leave out.

    Args:
        codec: its name, as FFmpeg has it.
        wanted: see `Wanted`.
    """

    def __init__(self, codec: str, wanted: Wanted) -> None:
        self._possible = codec in _CODECS
        self._wanted = wanted
        self._time_of: Callable[[int], float] | None = None
        self._stamps: list[int] = []  # of packets that were not shown yet as far as is known
        self._left_out: dict[int, int] = {}  # time stamp -> duration

    def begin(self, time_of: Callable[[int], float], interlaced: bool) -> None:
        """Skip from now on; told when the first frame has come out.

        Args:
            time_of: from a time stamp to seconds.
            interlaced: a frame may then be two packets, so none is skipped.
        """
        if self._possible and not interlaced:
            self._time_of = time_of

    def end(self) -> None:
        """Skip nothing any more."""
        self._possible, self._time_of = False, None

    def look_ahead(self, packets: Iterator[Any]) -> Iterator[Any]:
        """The same packets, each of them when the next ones are known."""
        ahead: deque[Any] = deque()
        for packet in packets:
            if packet.pts is None:
                self.end()  # What is shown when cannot be told from the packets.
            elif not packet.is_discard:
                insort(self._stamps, packet.pts)
            ahead.append(packet)
            if len(ahead) > _LOOK_AHEAD:
                yield ahead.popleft()
        yield from ahead

    def may_skip(self, packet: Any) -> bool:
        """Whether nobody looks at the packet's frame."""
        if self._time_of is None or packet.is_discard:
            return False
        after = bisect_right(self._stamps, packet.pts)
        if after == len(self._stamps):
            return False  # The last frame stands for all that may be asked for after it.
        start_s, end_s = self._time_of(packet.pts), self._time_of(self._stamps[after])
        return not self._wanted(start_s, end_s)

    def leave_out(self, packet: Any) -> None:
        """The decoder was told to skip it; a reference frame comes out all the same."""
        self._left_out[packet.pts] = packet.duration or 0

    def before(self, stamp: int | None) -> list[tuple[int, int]]:
        """(time stamp, duration) of what was left out and is shown before the frame at `stamp`.

        None: the frame has no time stamp, and nothing is known to be before it.
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
        """(time stamp, duration) of what was left out behind the last frame."""
        return sorted(self._left_out.items())
