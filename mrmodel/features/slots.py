"""Memory that a worker process fills and its parent reads, so that frames are not sent by pipe."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
from numpy.typing import NDArray

# While one is read the other is filled.
SLOTS = 2


class Slots:
    """`SLOTS` places of equal size for arrays of bytes, in memory of two processes.

    It can be given to a process when that is started, and in no other way.

    Args:
        fd: of a file of the right size that has no name, so it goes with its last process.
        slot_bytes: size of one slot.
    """

    def __init__(self, fd: int, slot_bytes: int) -> None:
        self._fd, self.slot_bytes = fd, slot_bytes
        self._memory = mmap.mmap(fd, SLOTS * slot_bytes)

    @classmethod
    def create(cls, slot_bytes: int) -> Slots:
        """New memory. It does not lie in /dev/shm, which containers make 64 MB small."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("frames")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, SLOTS * slot_bytes)
        return cls(fd, slot_bytes)

    def array(self, slot: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The first bytes of a slot as an array that can be read and written."""
        start = slot * self.slot_bytes
        flat = np.frombuffer(self._memory, np.uint8, int(np.prod(shape)), start)
        return flat.reshape(shape)

    def close(self) -> None:
        """Let go of the file; arrays that are still in use stay good."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __reduce__(self) -> tuple[Callable[..., Slots], tuple[Any, int]]:
        return _received, (DupFd(self._fd), self.slot_bytes)


def _received(fd: Any, slot_bytes: int) -> Slots:
    return Slots(fd.detach(), slot_bytes)
