"""A test set as it was when a model was scored on it: rows, video contents, one digest.

Two models are compared on one digest only. A row more, a window moved or a video encoded anew is
another test set, and starts another line of comparison.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrmodel.errors import DataError
from mrmodel.evaluate.rows import Row
from mrmodel.features.index import read_index
from mrmodel.features.keys import split_segment
from mrmodel.files import digest_of
from mrmodel.types import Annotation


@dataclass(frozen=True, slots=True)
class TestSetContents:
    """Annotated queries and the videos that they are about.

    Attributes:
        split: ``test``, or ``val`` where a folder has no test split.
        rows: as in the annotation file, in its order.
        videos: SHA-256 of each video file by id; empty where features came without one.
    """

    split: str
    rows: tuple[Row, ...]
    videos: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that may decide a figure; the order of the rows does not."""
        ordered = sorted(self.rows, key=lambda row: str(row["qid"]))
        return digest_of({"rows": ordered, "videos": dict(self.videos)})

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "digest": self.digest,
            "split": self.split,
            "rows": list(self.rows),
            "videos": dict(self.videos),
        }

    @classmethod
    def from_json(cls, text: str, where: str) -> TestSetContents:
        """Read a frozen set and check it against its own digest.

        Args:
            text: JSON of `as_json`.
            where: for messages.

        Raises:
            DataError: it is something else, or was changed.
        """
        try:
            raw = json.loads(text)
            found = cls(raw["split"], tuple(raw["rows"]), raw["videos"])
            digest, expected = found.digest, raw["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"holds no frozen test set: {error!r}", file=where) from None
        if digest != expected:
            rule = f"was changed: its rows and videos have digest {digest}, it says {expected}"
            raise DataError(rule, file=where)
        return found


def freeze(split: str, truth: Iterable[Annotation], stream: Path) -> TestSetContents:
    """The rows of a split with the contents of their videos, as the feature folder records them."""
    rows = tuple(row.as_row() for row in truth)
    contents = video_contents(stream)
    bases = {_whole(str(row["vid"]), contents) for row in rows}
    return TestSetContents(split, rows, {base: contents.get(base, "") for base in sorted(bases)})


def video_contents(stream: Path) -> dict[str, str]:
    """SHA-256 of the file of every video behind a feature folder, failed ones too."""
    return {row.entry.key: row.entry.src_sha256 for row in read_index(stream)}


def _whole(vid: str, contents: Mapping[str, str]) -> str:
    """The video that `vid` is, or is a part of."""
    segment = split_segment(vid)
    return vid if vid in contents or segment is None else segment.base
