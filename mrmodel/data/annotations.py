"""Annotation files: JSON lines in the QVHighlights schema, read with record-level errors.

Each line is an object with `qid`, `query`, `vid`, `duration` and, where the set has ground truth,
`relevant_windows` (seconds), `relevant_clip_ids` and `saliency_scores` (ratings 0..4, one per
rater). Other keys are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from mrmodel.errors import DataError, FileFormatError
from mrmodel.lines import json_lines
from mrmodel.text import shortened
from mrmodel.types import (
    MAX_DURATION_S,
    Annotation,
    QueryId,
    Window,
    clips_before,
    differs_in_type,
)

DEFAULT_CLIP_LEN_S = 2.0
MAX_RATING = 4
# Of generated pre-training rows: the published script of VideoLights rates up to exp(2.5).
MAX_PRETRAINING_RATING = 12.2
# Keys about single clips.
RATED = ("relevant_clip_ids", "saliency_scores")
# With more lines than this and no object among them, a file is of another kind.
_FEW = 10


@dataclass(slots=True)
class Scan:
    """Result of reading a file: `rows` (with line numbers), errors and warnings.

    Invalid records are not in `rows`; warnings are about unusual but usable records.
    """

    rows: list[Annotation] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    errors: list[DataError] = field(default_factory=list)
    warnings: list[DataError] = field(default_factory=list)

    def require_json_lines(self) -> Scan:
        """This scan; raises the error of a file that could not be read as a whole.

        Raises:
            FileFormatError: the file is of another kind.
        """
        for error in self.errors:
            if isinstance(error, FileFormatError):
                raise error
        return self


def read_annotations(
    path: Path, clip_len_s: float = DEFAULT_CLIP_LEN_S, max_rating: float = MAX_RATING
) -> list[Annotation]:
    """Read all records of an annotation file.

    Args:
        path: the JSONL file.
        clip_len_s: seconds of one clip, the unit of `relevant_clip_ids`.
        max_rating: the highest rating that is valid.

    Raises:
        DataError: a record is invalid; names file, line, qid, value and rule of the first one, and
            the number of others.
    """
    scan = scan_annotations(path, clip_len_s, max_rating=max_rating)
    if scan.errors:
        first, more = scan.errors[0], len(scan.errors) - 1
        rest = f" (and {more} more: mrmodel data check {path})" if more else ""
        raise DataError(first.rule + rest, file=path, line=first.line, qid=first.qid)
    return scan.rows


def scan_annotations(
    path: Path,
    clip_len_s: float = DEFAULT_CLIP_LEN_S,
    with_ratings: bool = True,
    max_rating: float = MAX_RATING,
) -> Scan:
    """Read a whole annotation file and collect all errors in it.

    Args:
        path: the JSONL file.
        clip_len_s: seconds of one clip, the unit of `relevant_clip_ids`.
        with_ratings: False: as if no record had the keys of `RATED`.
        max_rating: the highest rating that is valid.

    Raises:
        DataError: the file cannot be opened.
    """
    scan, unread = Scan(), 0
    first: dict[str, tuple[int, QueryId]] = {}
    try:
        for line, _, record in json_lines(path):
            if isinstance(record, DataError):
                scan.errors.append(record)
                unread += 1
                continue
            try:
                given = record if with_ratings else without_ratings(record)
                row, warnings = parse_annotation(given, clip_len_s, max_rating)
                used, same = first.setdefault(str(row.qid), (line, row.qid))
                if used != line:
                    rule = f"the qid is used already in line {used}"
                    raise DataError(rule + differs_in_type(row.qid, same))
            except DataError as error:
                scan.errors.append(error.at(path, line, record.get("qid")))
                continue
            scan.rows.append(row)
            scan.lines.append(line)
            scan.warnings += [DataError(w, file=path, line=line, qid=row.qid) for w in warnings]
    except FileFormatError as error:
        scan.errors.append(error)
    if unread == len(scan.errors) > _FEW and not scan.rows:
        rule = f"none of {unread} lines is a JSON object; the first: {scan.errors[0].rule}"
        scan.errors = [FileFormatError(rule, file=path, line=scan.errors[0].line)]
    if not scan.rows and not scan.errors:
        scan.errors.append(DataError("holds no annotation", file=path))
    return scan


def parse_annotation(
    record: Mapping[str, Any], clip_len_s: float, max_rating: float = MAX_RATING
) -> tuple[Annotation, list[str]]:
    """Check a record by all rules of annotation files; returns it and warnings about it.

    Raises:
        DataError: the first rule that it breaks, without file and line.
    """
    row = _row(record, max_rating)
    return row, _check_times(row, clip_len_s)


def without_ratings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without the keys of `RATED`: its windows alone are the ground truth."""
    return {key: value for key, value in record.items() if key not in RATED}


# Records of a split that is scored -> index of those that cannot be, and the rule that they break.
Unscorable = Callable[[Sequence[Annotation]], Mapping[int, str]]
SCORED_SPLITS = ("val", "test")


def truth_problem(row: Annotation) -> str | None:
    """Why a record cannot be trained on or evaluated; None if it can."""
    if row.relevant_windows or row.saliency_scores:
        return None
    return "no relevant_windows and no saliency_scores; training and evaluation need one of them"


def window_clips(windows: tuple[Window, ...], clip_len_s: float) -> set[int]:
    """Clips of which more than half lies in a window."""
    clips: set[int] = set()
    reached = 0
    for window in sorted(windows):
        first, last = math.floor(window[0] / clip_len_s), math.ceil(window[1] / clip_len_s)
        # Only the first and the last clip of a window may lie in it in part.
        first += not _is_inside(first, window, clip_len_s)
        last -= not _is_inside(last - 1, window, clip_len_s)
        clips.update(range(max(first, reached), last))
        reached = max(reached, last)
    return clips


def from_first_clip(row: Annotation, start_s: float, clip_len_s: float) -> Annotation:
    """The annotation in seconds and clips from the first picture on, as the rows of its video are.

    Windows and clips that lie before the first picture are left out.

    Args:
        row: in a player's seconds, from the start of the file.
        start_s: seconds from there to the first picture.
        clip_len_s: seconds of one clip.
    """
    if not start_s:
        return row
    before = clips_before(start_s, clip_len_s)
    seen = [place for place, clip in enumerate(row.relevant_clip_ids) if clip >= before]
    return replace(
        row,
        duration=max(row.duration - start_s, 0.0),
        relevant_windows=tuple(
            (max(start - start_s, 0.0), end - start_s)
            for start, end in row.relevant_windows
            if end > start_s
        ),
        relevant_clip_ids=tuple(row.relevant_clip_ids[place] - before for place in seen),
        saliency_scores=tuple(row.saliency_scores[place] for place in seen if row.saliency_scores),
    )


def _is_inside(clip: int, window: Window, clip_len_s: float) -> bool:
    inside = min(window[1], (clip + 1) * clip_len_s) - max(window[0], clip * clip_len_s)
    return inside > clip_len_s / 2


def _row(record: Mapping[str, Any], max_rating: float) -> Annotation:
    missing = [key for key in ("qid", "query", "vid", "duration") if key not in record]
    if missing:
        raise DataError(f"lacks {', '.join(map(repr, missing))}")
    return Annotation(
        qid=_query_id(record["qid"]),
        query=_text("query", record["query"]),
        vid=_text("vid", record["vid"]),
        duration=checked_duration(record["duration"]),
        relevant_windows=_windows(record.get("relevant_windows")),
        relevant_clip_ids=_clip_ids(record.get("relevant_clip_ids")),
        saliency_scores=_ratings(record.get("saliency_scores"), max_rating),
    )


def _query_id(value: Any) -> QueryId:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"qid = {_shown(value)}: expected an integer or a non-empty string")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} = {_shown(value)}: expected a string")
    if not value.strip():
        raise DataError(f"{name} = {_shown(value)}: is empty")
    is_text = value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
    if "\0" in value or not is_text:
        raise DataError(f"{name} = {json.dumps(value)[:60]}: holds NUL or half of a character")
    return value


def checked_duration(value: Any) -> float:
    """The field `duration` in seconds.

    Raises:
        DataError: it is no number, not above 0, or longer than a day.
    """
    number = _number("duration", value)
    if number <= 0:
        raise DataError(f"duration = {_shown(value)}: expected seconds above 0")
    if number > MAX_DURATION_S:
        raise DataError(f"duration = {_shown(value)}: longer than a day; milliseconds?")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{name} = {_shown(value)}: expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{name} = {_shown(value)}: is too large")
    return number


def _items(name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"{name} = {_shown(value)}: expected a list")
    return value


def _windows(value: Any) -> tuple[Window, ...]:
    windows = []
    for place, window in enumerate(_items("relevant_windows", value)):
        name = f"relevant_windows[{place}]"
        if not isinstance(window, list) or len(window) != 2:
            raise DataError(f"{name} = {_shown(window)}: expected [start, end] in seconds")
        start, end = (_number(name, bound) for bound in window)
        if start >= end:
            raise DataError(f"{name} = {_shown(window)}: starts at or after its end")
        windows.append((start, end))
    return tuple(windows)


def _clip_ids(value: Any) -> tuple[int, ...]:
    ids = _items("relevant_clip_ids", value)
    for place, clip in enumerate(ids):
        name = f"relevant_clip_ids[{place}]"
        if isinstance(clip, bool) or not isinstance(clip, int):
            raise DataError(f"{name} = {_shown(clip)}: expected an integer")
        if clip < 0:
            raise DataError(f"{name} = {clip}: is negative")
        if place and clip <= ids[place - 1]:
            raise DataError(f"{name} = {clip} after {ids[place - 1]}: not sorted, or twice")
    return tuple(ids)


def _ratings(value: Any, highest: float) -> tuple[tuple[float, ...], ...]:
    rows = []
    for place, ratings in enumerate(_items("saliency_scores", value)):
        name = f"saliency_scores[{place}]"
        if not isinstance(ratings, list) or not ratings:
            raise DataError(f"{name} = {_shown(ratings)}: expected a list of ratings, one a rater")
        numbers = tuple(_number(name, rating) for rating in ratings)
        if not all(0 <= number <= highest for number in numbers):
            raise DataError(f"{name} = {_shown(ratings)}: ratings lie in 0..{highest:g}")
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
            raise DataError(f"{name}: lies outside the video of {row.duration} s")
        if end > row.duration:
            warnings.append(f"{name}: ends after the video of {row.duration} s; training cuts it")
    if row.relevant_clip_ids:
        clip, n_clips = row.relevant_clip_ids[-1], math.ceil(row.duration / clip_len_s)
        if clip > n_clips:
            rule = f"the video has {n_clips} clips of {clip_len_s} s"
            raise DataError(f"relevant_clip_ids holds {clip}: {rule}")
        if clip == n_clips:
            warnings.append(f"relevant clip {clip} begins after the video; training leaves it out")
    if len(row.saliency_scores) not in (0, len(row.relevant_clip_ids)):
        counts = f"{len(row.saliency_scores)} for {len(row.relevant_clip_ids)} relevant clips"
        raise DataError(f"saliency_scores: {counts}; expected one list of ratings a clip")
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


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # Writing takes deeper recursion than reading.
        return "a value nested too deeply"
    return shortened(text, 60)
