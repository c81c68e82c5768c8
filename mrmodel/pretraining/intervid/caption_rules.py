"""Row-local caption rules: which captions describe a scene.

The SG-DETR paper only states that "meaningless" captions were removed; these rules are ours.
The result of a row is the index in `RULES` of the first rule that it fails, or `PASSED`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mrmodel.config.intervid import CaptionSettings
from mrmodel.features.keys import normalise_query
from mrmodel.files import parse_yaml

RULES = (
    "normalise",
    "length",
    "script",
    "medium",
    "repetition",
    "generic",
    "score",
    "interval",
    "dedupe",
    "cap",
    "leak",
)
PASSED = -1

_QUOTES = "\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"  # straight, curly and angle quotes
_NOT_BASIC = r"[^A-Za-z0-9 .,;:!?'\"()/&%$+-]"
_LINK = r"https?://|www\.|\.(?:com|net|org)\b|[@#]"
_WORD = re.compile(r"\w+(?:'\w+)*")

Bools = NDArray[np.bool_]


def rule_index(name: str) -> int:
    """Index of a rule in `RULES`."""
    return RULES.index(name)


def normalise_caption(caption: str) -> str:
    """The caption as a query: normalised like every query, without enclosing quotes.

    The result is invariant under `features.keys.normalise_query`, so the text key of a caption is
    the same everywhere.
    """
    text = normalise_query(caption)
    while len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        text = text[1:-1].strip()
    return "" if text in _QUOTES else text


@dataclass(frozen=True, slots=True)
class CaptionWords:
    """The versioned word lists of caption_words.yaml."""

    version: int
    medium: re.Pattern[str]
    stop_words: frozenset[str]
    generic: frozenset[str]


@cache
def caption_words() -> CaptionWords:
    """The word lists, read once per process."""
    source = resources.files("mrmodel.pretraining.intervid").joinpath("caption_words.yaml")
    lists = parse_yaml(source.read_text(encoding="utf-8"))
    writing = f"in (?:{_any_of(lists['languages'])}) (?:{_any_of(lists['writing'])})"
    return CaptionWords(
        version=lists["version"],
        medium=re.compile(rf"\b(?:{_any_of(lists['medium'])}|{writing})\b"),
        stop_words=frozenset(lists["stop_words"]),
        generic=frozenset(lists["generic"]),
    )


@dataclass(frozen=True, slots=True)
class CaptionColumns:
    """Well-formed rows of a chunk as columns; `captions` are normalised, times in ms."""

    captions: list[str]
    start_ms: NDArray[np.int64]
    end_ms: NDArray[np.int64]
    umt: NDArray[np.float64]
    aesthetic: NDArray[np.float64]


def first_failed(rows: CaptionColumns, settings: CaptionSettings, max_ms: int) -> NDArray[np.int8]:
    """The first row-local rule that each row fails.

    Args:
        rows: n rows.
        settings: enabled rules and limits.
        max_ms: maximum interval, equal to the segment length.

    Returns:
        (n,) index in `RULES`, or `PASSED`.
    """
    text = pd.Series(pd.array(pa.array(rows.captions, pa.large_string()), dtype="str"))
    lower = text.str.lower()
    failed = np.full(len(text), PASSED, dtype=np.int8)

    def fail(rule: str, bad: Bools) -> None:
        if getattr(settings.rules, rule):
            failed[(failed == PASSED) & bad] = rule_index(rule)

    fail("length", _bad_length(text, settings))
    fail("script", _bad_script(text, lower, settings))
    fail("medium", _bools(lower.str.contains(caption_words().medium.pattern)))
    if settings.rules.repetition:
        alive = np.flatnonzero(failed == PASSED)
        bad = [repeats_itself(rows.captions[row], settings) for row in alive]
        failed[alive[np.array(bad, dtype=bool)]] = rule_index("repetition")
    fail("generic", _bools(lower.str.rstrip(".! ").isin(caption_words().generic)))
    fail("score", _bad_score(rows, settings))
    length_ms = rows.end_ms - rows.start_ms
    fail("interval", (length_ms < round(settings.min_interval_s * 1000)) | (length_ms > max_ms))
    return failed


def repeats_itself(caption: str, settings: CaptionSettings) -> bool:
    """Rule `repetition`: a word or word pair occurs too often, or too few words are distinct."""
    words = _WORD.findall(caption.lower())
    distinct = set(words)
    if len(distinct) == len(words):
        return False
    if len(distinct) < settings.min_distinct_share * len(words):
        return True
    # Upper bound on the count of any word, and so of any pair.
    spare = len(words) - len(distinct) + 1
    if spare <= min(settings.max_word_repeats, settings.max_bigram_repeats):
        return False
    content = [word for word in words if word not in caption_words().stop_words]
    pairs = list(itertools.pairwise(words))
    return _is_repeated(content, settings.max_word_repeats) or _is_repeated(
        pairs, settings.max_bigram_repeats
    )


def _is_repeated(items: Sequence[object], most: int) -> bool:
    """Whether an item occurs more than `most` times."""
    if len(items) - len(set(items)) < most:
        return False
    return max(Counter(items).values()) > most


def _bad_length(text: pd.Series[str], settings: CaptionSettings) -> Bools:
    characters = text.str.len().to_numpy()
    words = text.str.count(" ").to_numpy() + 1
    return (
        (words < settings.min_words)
        | (words > settings.max_words)
        | (characters < settings.min_characters)
        | (characters > settings.max_characters)
    )


def _bad_script(text: pd.Series[str], lower: pd.Series[str], settings: CaptionSettings) -> Bools:
    characters = text.str.len().to_numpy()
    basic = characters - text.str.count(_NOT_BASIC).to_numpy()
    digits = text.str.count("[0-9]").to_numpy()
    return (
        (basic < settings.min_ascii_share * characters)
        | (digits > settings.max_digit_share * characters)
        | _bools(lower.str.contains(_LINK))
    )


def _bad_score(rows: CaptionColumns, settings: CaptionSettings) -> Bools:
    bad = np.zeros(len(rows.umt), dtype=bool)
    if settings.min_umt_score is not None:
        bad |= rows.umt < settings.min_umt_score
    if settings.min_aesthetic_score is not None:
        bad |= rows.aesthetic < settings.min_aesthetic_score
    return bad


def _bools(column: pd.Series[bool]) -> Bools:
    return column.to_numpy(dtype=bool)


def _any_of(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in words)
