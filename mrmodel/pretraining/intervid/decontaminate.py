"""Evaluation videos, which must be excluded from training samples.

Those of a registered data set are read from its published annotation files, in a folder of its own
(``<folder>/<name>/``): whatever split a video is in, it is excluded.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrmodel.components import DATASETS
from mrmodel.data.datasets.base import PublishedDataset, ReadOptions
from mrmodel.errors import DataError
from mrmodel.features.keys import base_video
from mrmodel.files import digest_of
from mrmodel.lines import json_lines, text_lines


@dataclass(frozen=True, slots=True)
class Excluded:
    """Videos that rule `leak` removes.

    Attributes:
        videos: their ids, in every form that a caption table may write them.
        lists: number of ids by the name of the list: the corpus itself, and registered data sets.
    """

    videos: frozenset[str]
    lists: Mapping[str, int]

    @classmethod
    def of(cls, lists: Mapping[str, Iterable[str]]) -> Excluded:
        """The ids of some lists; a segment stands for its whole video, too."""
        named = {name: frozenset(vids) for name, vids in lists.items()}
        every = frozenset[str]().union(*named.values())
        both = in_both_forms(every | set(map(base_video, every)))
        return cls(both, {name: len(vids) for name, vids in sorted(named.items())})

    def described(self) -> dict[str, Any]:
        """The lists, and a digest of the ids."""
        digest = digest_of(sorted(self.videos))
        return {"lists": dict(self.lists), "videos": len(self.videos), "digest": digest}


def read_leak_files(paths: Iterable[Path]) -> frozenset[str]:
    """Video ids of evaluation sets.

    Args:
        paths: ``.jsonl`` files are annotation files, of which the field ``vid`` is read; others
            hold one id per line. Segments are listed as their whole video and under their own name,
            since an id may happen to look like a segment.

    Raises:
        DataError: a file is missing, holds no id, or a row has no ``vid``.
    """
    found: set[str] = set()
    for path in paths:
        vids = _vids_of(path)
        if not vids:
            raise DataError("holds no video id: an empty leak list protects nothing", file=path)
        found |= vids | {base_video(vid) for vid in vids}
    return frozenset(found)


def read_benchmarks(folder: Path, names: Iterable[str]) -> dict[str, frozenset[str]]:
    """Video ids of registered data sets, by name.

    Args:
        folder: holds a folder with the published annotation files of each.
        names: of `components.DATASETS`.

    Raises:
        DataError: a published file is missing, or holds no video id.
    """
    return {name: _published_ids(folder / name, name) for name in names}


def _published_ids(folder: Path, name: str) -> frozenset[str]:
    dataset: PublishedDataset = DATASETS.get(name)()
    found: set[str] = set()
    for file in dataset.files:
        paths = [folder / one for one in file.names if (folder / one).is_file()]
        if not paths:
            wanted = " or ".join(file.names)
            rule = f"lacks {wanted} of {dataset.title}: rule `leak` must know its {file.split} set"
            raise DataError(rule, file=folder)
        if paths[0].suffix == ".jsonl":  # the ids of rows that the reader refuses, too
            found |= read_leak_files(paths[:1])
        elif paths[0].suffix == ".txt":  # an id, two times and a sentence
            found |= {text.split()[0] for _, text in text_lines(paths[0])}
        else:
            rows = dataset.read(paths[0], ReadOptions()).rows
            if not rows:
                raise DataError("holds no video id", file=paths[0])
            found |= {row["vid"] for row in rows}
    return frozenset(found)


def in_both_forms(vids: Iterable[str]) -> frozenset[str]:
    """The ids with their accents composed (NFC) and decomposed (NFD); captions may have either."""
    named = list(vids)
    return frozenset(
        unicodedata.normalize(form, vid) for vid in named for form in ("NFC", "NFD")
    ) | frozenset(named)


def _vids_of(path: Path) -> set[str]:
    if not path.exists():
        raise DataError("no such leak list; list the evaluation videos", file=path)
    if path.suffix != ".jsonl":
        return {text.strip() for _, text in text_lines(path)}
    found = set()
    for line, _, record in json_lines(path, nan=True):
        if isinstance(record, DataError):
            raise record
        vid = record.get("vid")
        if not isinstance(vid, str) or not vid:
            raise DataError("expected an object with the text field 'vid'", file=path, line=line)
        found.add(vid)
    return found
