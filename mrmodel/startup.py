"""What this package's own programs do before they import anything large."""

from __future__ import annotations

import atexit
import gc
import sys
from itertools import pairwise

_PROGRAMS = ("mrmodel", "flows")
# New objects between two searches for garbage. Python's own number is 700.
_SELDOM = 50_000


def is_own_program() -> bool:
    """Whether this process was started as ``python -m mrmodel...`` or ``python -m flows...``."""
    words = pairwise(sys.orig_argv)
    return any(option == "-m" and module.partition(".")[0] in _PROGRAMS for option, module in words)


def search_garbage_seldom() -> None:
    """Let this process look for reference cycles seldom, and not at all when it ends.

    PyTorch, pandas, DVC and MLflow make up to a million objects that stay. Searching them again and
    again takes a third of the CPU time in which a process starts and ends. What the package does
    with them makes few cycles: a step of training none.
    """
    gc.set_threshold(_SELDOM, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)
