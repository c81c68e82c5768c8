"""Evaluation videos, which must be excluded from training samples."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mrmodel.errors import DataError
from mrmodel.features.keys import split_segment


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


def _vids_of(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError("no such leak list; list the evaluation videos", file=path) from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    if path.suffix != ".jsonl":
        return {line for _, line in numbered if line}
    return {_vid_of(path, number, line) for number, line in numbered if line}


def _vid_of(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=path, line=number) from None
    vid = row.get("vid") if isinstance(row, dict) else None
    if not isinstance(vid, str) or not vid:
        raise DataError("expected an object with the text field 'vid'", file=path, line=number)
    return vid
