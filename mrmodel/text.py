"""Tables, sparklines, times, figures, texts cut to a length, and texts with nothing to see."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

_BARS = "▁▂▃▄▅▆▇█"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cell contents are escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells, each column as wide as its widest cell, with two spaces between columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def first_of(items: Sequence[str], most: int) -> str:
    """The first `most` items, separated by semicolons, and how many more there are."""
    rest = len(items) - most
    return "; ".join(items[:most]) + (f"; and {rest} more" if rest > 0 else "")


def four_digits(value: object) -> str:
    """`value` as text; a float with four of its digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shortened(text: str, most: int) -> str:
    """`text`, cut so that it has no more than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def clock(seconds: float) -> str:
    """A time as players show it, with tenths: ``7:05.0``, ``1:02:03.5``."""
    tenths = round(seconds * 10)
    hours, minutes, rest = tenths // 36_000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


# Letters, signs and marks without a picture of their own, and selectors of variants.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
# Control characters, marks of format (such as of zero width), separators.
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})


def is_visible(text: str) -> bool:
    """Whether there is anything to see in a text."""
    return any(unicodedata.category(char) not in _UNSEEN for char in _BLANK.sub("", text))


# Beginnings of the names of letters and marks of Latin script.
_LATIN = ("LATIN", "COMBINING", "MODIFIER", "VARIATION SELECTOR", "ZERO WIDTH")
# Greek letters that stand alone are symbols, as in "an α particle".
_SYMBOL = re.compile(r"(?<![^\W\d_])[Α-ω](?![^\W\d_])")


def other_scripts(text: str) -> list[bool]:
    """Of each character, whether it is a letter or a mark of another script than the Latin one."""
    symbols = {found.start() for found in _SYMBOL.finditer(text)}
    return [
        unicodedata.category(char)[0] in "LM"
        and not unicodedata.name(char, "").startswith(_LATIN)
        and place not in symbols
        for place, char in enumerate(text)
    ]


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
