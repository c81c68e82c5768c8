"""Frozen test set of an evaluation: annotations, video contents, and one digest.

Models are compared only if the digests are equal. Any change of a row, a window or a video gives
another test set and a new baseline.
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
from mrmodel.features.keys import base_video
from mrmodel.files import digest_of
from mrmodel.types import Annotation


@dataclass(frozen=True, slots=True)
class TestSetContents:
    """Annotated queries and their videos.

    Attributes:
        split: ``test``, or ``val`` if there is no test split.
        rows: records of the annotation file, in its order.
        videos: SHA-256 of each video file by id; empty if features came without videos.
    """

    split: str
    rows: tuple[Row, ...]
    videos: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that affects a metric; independent of the order of the rows."""
        ordered = sorted(self.rows, key=lambda row: str(row["qid"]))
        return digest_of({"rows": ordered, "videos": dict(self.videos)})

    def as_json(self) -> dict[str, Any]:
        """JSON-able form for `from_json`."""
        return {
            "digest": self.digest,
            "split": self.split,
            "rows": list(self.rows),
            "videos": dict(self.videos),
        }

    @classmethod
    def from_json(cls, text: str, where: str) -> TestSetContents:
        """Read a frozen set and verify its digest.

        Args:
            text: JSON of `as_json`.
            where: origin, for error messages.

        Raises:
            DataError: the text has other content, or was changed.
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
    """The rows of a split with the hashes of their videos from the feature folder."""
    rows = tuple(row.as_row() for row in truth)
    contents = video_contents(stream)
    bases = {_whole(str(row["vid"]), contents) for row in rows}
    return TestSetContents(split, rows, {base: contents.get(base, "") for base in sorted(bases)})


def video_contents(stream: Path) -> dict[str, str]:
    """SHA-256 of every video file of a feature folder, including failed ones."""
    return {row.entry.key: row.entry.src_sha256 for row in read_index(stream)}


def _whole(vid: str, contents: Mapping[str, str]) -> str:
    """The id of the whole video, if `vid` is a segment."""
    return vid if vid in contents else base_video(vid)
