"""Whether a file is all there, by the sizes that MP4, Matroska and AVI state of themselves."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Protocol

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
# Fragmented files have two boxes for each fragment; in S3 reading one takes a request.
_MOST_BOXES = 64
# Searched behind the last packet, where an index may lie, which is shorter.
_TAIL = 1 << 16


class Seekable(Protocol):
    """What is needed of a file."""

    def read(self, count: int) -> bytes:
        """At most `count` bytes."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Returns the new position."""


def is_cut(file: Seekable) -> bool | None:
    """Whether bytes are missing at the end of a file; None if it states no size."""
    n_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    if head[4:8] in _BOXES:
        stated = _end_of_boxes(file, n_bytes)
    elif head[:4] == _EBML:
        stated = _end_of_segment(file)
    elif head[:4] == b"RIFF":
        stated = int.from_bytes(head[4:8], "little") or None
    else:
        return None
    return None if stated is None else stated > n_bytes


def is_appended(file: Seekable, read_to: int) -> bool:
    """Whether another file was appended that was not read.

    Args:
        file: the file.
        read_to: place after the last packet that was read.
    """
    file.seek(0)
    head = file.read(16)
    if head[4:8] in _BOXES:
        places = (place for place, kind in _boxes(file) if kind == b"ftyp")
        return any(place >= read_to for place in places)
    for name in (_EBML, b"FLV\x01", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):  # the last: ASF
        if head.startswith(name):
            file.seek(read_to)
            return name in file.read(_TAIL)
    return False


def _boxes(file: Seekable) -> Iterator[tuple[int, bytes]]:
    """MP4: place and kind of the boxes of the file; of the first ones, if they are many."""
    place = 0
    for _ in range(_MOST_BOXES):
        file.seek(place)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        yield place, head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if size < 8:  # 0: to the end of the file
            return
        place += size


def _end_of_boxes(file: Seekable, n_bytes: int) -> int | None:
    """MP4: the end of the last box that starts in the file."""
    for place, _kind in _boxes(file):
        if place >= n_bytes:
            return place
    return None


def _end_of_segment(file: Seekable) -> int | None:
    """Matroska: the end of the first segment."""
    place = 0
    for name in (_EBML, _SEGMENT):
        file.seek(place)
        head = file.read(12)
        if head[:4] != name or len(head) < 12:
            return None
        length = 9 - head[4].bit_length()
        bits = 7 * length
        size = int.from_bytes(head[4 : 4 + length], "big") & ((1 << bits) - 1)
        if length > 8 or size == (1 << bits) - 1:  # an unknown size, as in live streams
            return None
        place += 4 + length + size
    return place
