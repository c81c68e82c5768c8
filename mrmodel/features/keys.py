"""Keys of a feature store: video ids, segments of a video, and the keys of texts."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection
from itertools import groupby
from typing import Literal, NamedTuple

from mrmodel.errors import FeatureError

_SEGMENT = re.compile(r"(?P<base>.+)_(?P<start>\d+(?:\.\d+)?)_(?P<end>\d+(?:\.\d+)?)")
# Characters of a text that is normalised as it is.
_SHORT = 250


class Segment(NamedTuple):
    """A part of a video: ``<base>_<start>_<end>`` in seconds, the naming of QVHighlights."""

    base: str
    start_s: float
    end_s: float


def composed(name: str) -> str:
    """The form in which names of videos are compared: NFC, as most keyboards write accents.

    File names of macOS are decomposed (NFD): an ``e`` and a combining accent.
    """
    return _normalised("NFC", name)


def normalise_query(query: str) -> str:
    """Normalise a query for encoding and keys: NFKC, stripped, white space collapsed."""
    return " ".join(_normalised("NFKC", query).split())


def _normalised(form: Literal["NFC", "NFKC"], text: str) -> str:
    """`unicodedata.normalize`, in a time that grows with the length and not with its square.

    It sorts the accents of a letter by insertion, so a row of a million takes hours; sorted ones
    take none.
    """
    if len(text) > _SHORT and not text.isascii():
        apart: Literal["NFD", "NFKD"] = "NFD" if form == "NFC" else "NFKD"
        letters = "".join(unicodedata.normalize(apart, letter) for letter in text)
        sorted_accents: list[str] = []
        for are_accents, found in groupby(letters, lambda one: unicodedata.combining(one) > 0):
            run = list(found)
            sorted_accents += sorted(run, key=unicodedata.combining) if are_accents else run
        text = "".join(sorted_accents)
    return unicodedata.normalize(form, text)


def text_key(query: str) -> str:
    """Key of a query in a text stream: ``t-`` and 16 hex digits of its normalised text."""
    digest = hashlib.blake2b(normalise_query(query).encode(), digest_size=8)
    return f"t-{digest.hexdigest()}"


def split_segment(vid: str) -> Segment | None:
    """Parse `vid` as a segment of a longer video; None where it is not one."""
    match = _SEGMENT.fullmatch(vid)
    if match is None:
        return None
    segment = Segment(match["base"], float(match["start"]), float(match["end"]))
    return segment if segment.start_s < segment.end_s else None


def base_video(vid: str) -> str:
    """The video id of a segment ``<base>_<start>_<end>``; other ids unchanged."""
    segment = split_segment(vid)
    return vid if segment is None else segment.base


def shard_of(keys: Collection[str], index: int, count: int) -> list[str]:
    """The keys of shard `index` (from 0) of `count`; each key is in exactly one shard.

    Sizes differ by at most one; neighbours in key order, often parts of one long video, go to
    different shards.

    Raises:
        FeatureError: there is no such shard.
    """
    if not 0 <= index < count:
        raise FeatureError(f"shard {index} of {count}: the first is 0, the last {count - 1}")
    return sorted(keys)[index::count]
