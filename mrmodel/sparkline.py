"""A curve as one line of block characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(
    values: Sequence[float], width: int, combine: Callable[[Sequence[float]], float]
) -> str:
    """Values as bars between the lowest and the highest one shown.

    Args:
        values: at least one.
        width: characters at most; with fewer values, one each.
        combine: makes one value of the neighbours that share a character, for example `max`.
    """
    count = max(1, min(width, len(values)))
    edges = [column * len(values) // count for column in range(count + 1)]
    shown = [combine(values[start:end]) for start, end in pairwise(edges)]
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)
