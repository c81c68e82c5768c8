"""Child processes: how many, and that none outlives its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def worker_count(wish: int) -> int:
    """Number of worker processes: `wish`, or one a core where it is 0."""
    return wish or os.cpu_count() or 1


def tasks_at_once(tasks: int) -> int:
    """How many of so many tasks this machine runs at the same time, when it runs them all."""
    return max(1, min(tasks, os.cpu_count() or 1))


def die_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent dies; does nothing outside Linux.

    DVC killed with SIGKILL leaves the stage command running, which would go on writing into a
    folder that the next `dvc repro` already owns (mlops.md, section 1).
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how, 0, 0, 0)
    if os.getppid() != parent:  # It died just before the request was made.
        os.kill(os.getpid(), how)
