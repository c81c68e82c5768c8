"""How much Python a call executes: a measure of work that no clock and no busy machine disturb."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def python_steps(call: Callable[[], object]) -> int:
    """Lines that `call` executes, of its own and of all Python functions below it.

    A loop or a comprehension counts once a round; what numpy does in C does not count.
    """
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
