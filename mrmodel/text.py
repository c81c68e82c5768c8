"""Markdown tables and sparklines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

_BARS = "▁▂▃▄▅▆▇█"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cell contents are escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def sparkline(
    values: Sequence[float], width: int, combine: Callable[[Sequence[float]], float]
) -> str:
    """Values as bars, scaled between the minimum and the maximum shown.

    Args:
        values: at least one.
        width: maximum number of characters; fewer values take one each.
        combine: reduces neighbouring values that share a character, for example `max`.
    """
    count = max(1, min(width, len(values)))
    edges = [column * len(values) // count for column in range(count + 1)]
    shown = [combine(values[start:end]) for start, end in pairwise(edges)]
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)
