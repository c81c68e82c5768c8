"""What this package's own programs do before they import anything large."""

from __future__ import annotations

import atexit
import gc
import sys
from itertools import pairwise

_PROGRAMS = ("mrmodel", "flows")
# New objects between two runs of the garbage collector. Python's default is 700.
_THRESHOLD = 50_000


def is_own_program() -> bool:
    """Whether this process was started as ``python -m mrmodel...`` or ``python -m flows...``."""
    words = pairwise(sys.orig_argv)
    return any(option == "-m" and module.partition(".")[0] in _PROGRAMS for option, module in words)


def collect_garbage_rarely() -> None:
    """Make the garbage collector of this process run rarely, and not at its exit.

    PyTorch, pandas, DVC and MLflow make up to a million objects that stay. Scanning them again and
    again takes a third of the CPU time in which a process starts and ends. The package itself
    leaves few reference cycles behind: a step of training none.
    """
    gc.set_threshold(_THRESHOLD, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)
