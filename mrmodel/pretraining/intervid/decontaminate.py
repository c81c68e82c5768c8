"""Evaluation videos, which must be excluded from training samples."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from mrmodel.errors import DataError
from mrmodel.features.keys import split_segment
from mrmodel.lines import json_lines, text_lines


def base_video(vid: str) -> str:
    """The video id of a segment ``<base>_<start>_<end>``; other ids unchanged."""
    segment = split_segment(vid)
    return vid if segment is None else segment.base


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
