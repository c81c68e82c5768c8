"""Annotation files: JSON lines in the QVHighlights schema, read with record-level errors.

Each line is an object with `qid`, `query`, `vid`, `duration` and, where the set has ground truth,
`relevant_windows` (seconds), `relevant_clip_ids` and `saliency_scores` (ratings 0..4, one per
rater). Other keys are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from mrmodel.errors import DataError
from mrmodel.types import Annotation, QueryId, Window, differs_in_type

DEFAULT_CLIP_LEN_S = 2.0
MAX_RATING = 4


@dataclass(slots=True)
class Scan:
    """Result of reading a file: `rows` (with line numbers), errors and warnings.

    Invalid records are not in `rows`; warnings are about unusual but usable records.
    """

    rows: list[Annotation] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    errors: list[DataError] = field(default_factory=list)
    warnings: list[DataError] = field(default_factory=list)


class _Broken(Exception):
    """A rule that a record breaks; converted to a DataError with file and line."""


def read_annotations(path: Path, clip_len_s: float = DEFAULT_CLIP_LEN_S) -> list[Annotation]:
    """Read all records of an annotation file.

    Args:
        path: the JSONL file.
        clip_len_s: seconds of one clip, the unit of `relevant_clip_ids`.

    Raises:
        DataError: a record is invalid; names file, line, qid, value and rule of the first one, and
            the number of others.
    """
    scan = scan_annotations(path, clip_len_s)
    if scan.errors:
        first, more = scan.errors[0], len(scan.errors) - 1
        rest = f" (and {more} more: mrmodel data check {path})" if more else ""
        raise DataError(first.rule + rest, file=path, line=first.line, qid=first.qid)
    return scan.rows


def scan_annotations(path: Path, clip_len_s: float = DEFAULT_CLIP_LEN_S) -> Scan:
    """Read a whole annotation file and collect all errors in it.

    Raises:
        DataError: the file cannot be opened.
    """
    scan = Scan()
    first: dict[str, tuple[int, QueryId]] = {}
    for line, raw in _lines(path):
        qid: object = None
        try:
            record = _object(raw)
            qid = record.get("qid")
            row = _row(record)
            used, same = first.setdefault(str(row.qid), (line, row.qid))
            if used != line:
                rule = f"the qid is used already in line {used}"
                raise _Broken(rule + differs_in_type(row.qid, same))
            warnings = _check_times(row, clip_len_s)
        except _Broken as broken:
            scan.errors.append(DataError(str(broken), file=path, line=line, qid=qid))
            continue
        scan.rows.append(row)
        scan.lines.append(line)
        scan.warnings.extend(
            DataError(text, file=path, line=line, qid=row.qid) for text in warnings
        )
    if not scan.rows and not scan.errors:
        scan.errors.append(DataError("holds no annotation", file=path))
    return scan


def window_clips(windows: tuple[Window, ...], clip_len_s: float) -> set[int]:
    """Clips of which more than half lies in a window."""
    clips: set[int] = set()
    for start, end in windows:
        first = math.floor(start / clip_len_s)
        last = math.ceil(end / clip_len_s)
        for clip in range(first, last):
            inside = min(end, (clip + 1) * clip_len_s) - max(start, clip * clip_len_s)
            if inside > clip_len_s / 2:
                clips.add(clip)
    return clips


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    yield line, raw
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from None


def _object(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _Broken(f"not UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise _Broken(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise _Broken(f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise _Broken(f"expected a JSON object, found {_kind(record)}")
    return record


def _refuse_constant(name: str) -> None:
    raise _Broken(f"{name} is not a JSON number")


def _row(record: dict[str, Any]) -> Annotation:
    missing = [key for key in ("qid", "query", "vid", "duration") if key not in record]
    if missing:
        raise _Broken(f"lacks {', '.join(map(repr, missing))}")
    return Annotation(
        qid=_query_id(record["qid"]),
        query=_text("query", record["query"]),
        vid=_text("vid", record["vid"]),
        duration=_duration(record["duration"]),
        relevant_windows=_windows(record.get("relevant_windows")),
        relevant_clip_ids=_clip_ids(record.get("relevant_clip_ids")),
        saliency_scores=_ratings(record.get("saliency_scores")),
    )


def _query_id(value: Any) -> QueryId:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise _Broken(f"qid = {_shown(value)}: expected an integer or a non-empty string")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _Broken(f"{name} = {_shown(value)}: expected a string")
    if not value.strip():
        raise _Broken(f"{name} = {_shown(value)}: is empty")
    return value


def _duration(value: Any) -> float:
    number = _number("duration", value)
    if number <= 0:
        raise _Broken(f"duration = {_shown(value)}: expected seconds above 0")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Broken(f"{name} = {_shown(value)}: expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Broken(f"{name} = {_shown(value)}: is too large")
    return number


def _items(name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _Broken(f"{name} = {_shown(value)}: expected a list")
    return value


def _windows(value: Any) -> tuple[Window, ...]:
    windows = []
    for place, window in enumerate(_items("relevant_windows", value)):
        name = f"relevant_windows[{place}]"
        if not isinstance(window, list) or len(window) != 2:
            raise _Broken(f"{name} = {_shown(window)}: expected [start, end] in seconds")
        start, end = (_number(name, bound) for bound in window)
        if start >= end:
            raise _Broken(f"{name} = {_shown(window)}: starts at or after its end")
        windows.append((start, end))
    return tuple(windows)


def _clip_ids(value: Any) -> tuple[int, ...]:
    ids = _items("relevant_clip_ids", value)
    for place, clip in enumerate(ids):
        name = f"relevant_clip_ids[{place}]"
        if isinstance(clip, bool) or not isinstance(clip, int):
            raise _Broken(f"{name} = {_shown(clip)}: expected an integer")
        if clip < 0:
            raise _Broken(f"{name} = {clip}: is negative")
        if place and clip <= ids[place - 1]:
            raise _Broken(f"{name} = {clip} after {ids[place - 1]}: not sorted, or twice")
    return tuple(ids)


def _ratings(value: Any) -> tuple[tuple[float, ...], ...]:
    rows = []
    for place, ratings in enumerate(_items("saliency_scores", value)):
        name = f"saliency_scores[{place}]"
        if not isinstance(ratings, list) or not ratings:
            raise _Broken(f"{name} = {_shown(ratings)}: expected a list of ratings, one a rater")
        numbers = tuple(_number(name, rating) for rating in ratings)
        if not all(0 <= number <= MAX_RATING for number in numbers):
            raise _Broken(f"{name} = {_shown(ratings)}: ratings lie in 0..{MAX_RATING}")
        rows.append(numbers)
    return tuple(rows)


def _check_times(row: Annotation, clip_len_s: float) -> list[str]:
    """Check rules across fields; returns warnings.

    A window may end up to one clip after the video, and the clip that begins there may be relevant:
    the last clip of the published annotations often extends beyond the end of the video.
    """
    warnings = []
    for place, (start, end) in enumerate(row.relevant_windows):
        name = f"relevant_windows[{place}] = {[start, end]}"
        if start < 0 or start >= row.duration or end > row.duration + clip_len_s:
            raise _Broken(f"{name}: lies outside the video of {row.duration} s")
        if end > row.duration:
            warnings.append(f"{name}: ends after the video of {row.duration} s; training cuts it")
    if row.relevant_clip_ids:
        clip, n_clips = row.relevant_clip_ids[-1], math.ceil(row.duration / clip_len_s)
        if clip > n_clips:
            rule = f"the video has {n_clips} clips of {clip_len_s} s"
            raise _Broken(f"relevant_clip_ids holds {clip}: {rule}")
        if clip == n_clips:
            warnings.append(f"relevant clip {clip} begins after the video; training leaves it out")
    if len(row.saliency_scores) not in (0, len(row.relevant_clip_ids)):
        counts = f"{len(row.saliency_scores)} for {len(row.relevant_clip_ids)} relevant clips"
        raise _Broken(f"saliency_scores: {counts}; expected one list of ratings a clip")
    return warnings + _oddities(row, clip_len_s)


def _oddities(row: Annotation, clip_len_s: float) -> list[str]:
    found = []
    windows = row.relevant_windows
    if any(later[0] < earlier[1] for earlier, later in pairwise(windows)):
        found.append("relevant_windows overlap, or are not sorted by start")
    if len({len(ratings) for ratings in row.saliency_scores}) > 1:
        found.append("saliency_scores: the number of raters varies between clips")
    if windows and row.relevant_clip_ids:
        differing = window_clips(windows, clip_len_s) ^ set(row.relevant_clip_ids)
        if differing:
            shown = ", ".join(map(str, sorted(differing)[:5]))
            rule = f"differ in clips {shown}{' ...' if len(differing) > 5 else ''}"
            found.append(f"relevant_clip_ids and relevant_windows {rule}")
    return found


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
