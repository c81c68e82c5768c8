"""Validated fields of records as arrays, one function per field; errors name file, line and qid.

The checks are vectorised over whole lists (types as sets, finiteness over one array); Python loops
over single values only to build an error message.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrmodel.evaluate.rows import RowFile, show
from mrmodel.types import MAX_DURATION_S

Mode = Literal["official", "clean"]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_NUMBER = frozenset((int, float))
_LIST = frozenset((list, tuple))


@dataclass(frozen=True, slots=True)
class Ragged:
    """n lists of unequal length, stacked: `values` (total, ...) and `counts` (n,)."""

    values: Floats
    counts: Integers

    def owners(self) -> Integers:
        """(total,) index of the list of each value."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def positions(self) -> Integers:
        """(total,) position of each value within its list."""
        starts = np.cumsum(self.counts) - self.counts
        return np.arange(len(self.values)) - np.repeat(starts, self.counts)

    def keep(self, chosen: NDArray[np.bool_]) -> Ragged:
        """Only the values where `chosen` (total,) is true."""
        counts = np.bincount(self.owners()[chosen], minlength=len(self.counts))
        return Ragged(self.values[chosen], counts.astype(np.int64))

    def head(self, limit: int) -> Ragged:
        """At most the first `limit` values of each list."""
        return self.keep(self.positions() < limit)

    def lists(self, indices: Integers) -> Ragged:
        """The lists at `indices`, in that order."""
        counts = self.counts[indices]
        starts = (np.cumsum(self.counts) - self.counts)[indices]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return Ragged(self.values[np.repeat(starts, counts) + within], counts)

    def merge(self, owners: Integers, n_lists: int) -> Ragged:
        """Concatenate the lists of each owner, in order: n lists become `n_lists`."""
        value_owners = np.repeat(owners, self.counts)
        counts = np.bincount(value_owners, minlength=n_lists).astype(np.int64)
        return Ragged(self.values[np.argsort(value_owners, kind="stable")], counts)

    def sums(self) -> Floats:
        """(n,) sum of each list of numbers as NumPy adds up a list of its length.

        The order of a sum decides its last digit: one after the other below eight numbers, eight
        partial sums from there on.
        """
        starts = np.cumsum(self.counts) - self.counts
        total = np.zeros(len(self.counts))
        for count in np.unique(self.counts).tolist():
            rows = np.flatnonzero(self.counts == count)
            total[rows] = self.values[starts[rows, None] + np.arange(count)].sum(axis=1)
        return total

    def padded(self, fill: float = 0.0, width: int | None = None) -> Floats:
        """(n, width, ...) array; the default width is the longest list, at least 1."""
        width = max(1, int(self.counts.max(initial=0))) if width is None else width
        table = np.full((len(self.counts), width, *self.values.shape[1:]), fill)
        table[self.owners(), self.positions()] = self.values
        return table

    def valid(self) -> NDArray[np.bool_]:
        """(n, width) mask of the entries of `padded` that are not padding."""
        return np.arange(max(1, int(self.counts.max(initial=0)))) < self.counts[:, None]


def has_field(rows: RowFile, key: str) -> bool:
    """Whether all records have `key`, or none.

    Raises:
        DataError: only some records have it.
    """
    having = [key in row for row in rows]
    if any(having) and not all(having):
        index = having.index(False)
        raise rows.error(index, f"has no {key!r}, which other rows have; give it in all or in none")
    return having[0]


def durations(rows: RowFile) -> Floats:
    """(n,) video lengths in seconds."""
    values = np.empty(len(rows))
    for index in range(len(rows)):
        value = _field(rows, index, "duration")
        if type(value) not in _NUMBER or not 0.0 < value <= MAX_DURATION_S:
            rule = f"'duration' must be seconds in (0, {MAX_DURATION_S:.0f}], found {show(value)}"
            raise rows.error(index, rule)
        values[index] = value
    return values


def number_lists(rows: RowFile, key: str) -> Ragged:
    """A list of finite numbers per record."""
    lists = [_list_field(rows, index, key) for index in range(len(rows))]
    counts = _counts(lists)
    return Ragged(_numbers(rows, key, list(chain.from_iterable(lists)), counts), counts)


def annotated_windows(rows: RowFile) -> Ragged:
    """Ground-truth windows (total, 2) in seconds; every query has at least one.

    Raises:
        DataError: a missing, empty or ill-shaped list, or a window that ends before it starts.
    """
    windows = _tuples(rows, "relevant_windows", ("start", "end"))
    empty = np.flatnonzero(windows.counts == 0)
    if len(empty):
        rule = "'relevant_windows' is empty: moment retrieval is not defined without a moment"
        raise rows.error(int(empty[0]), rule)
    _check_order(rows, "relevant_windows", windows)
    return windows


def predicted_windows(rows: RowFile, mode: Mode) -> Ragged:
    """Predicted windows (total, 3): start and end in seconds, score; in file order.

    In `official` mode every query needs a window, because the published evaluator defines no value
    without one, but a window may end before it starts (`MomentArrays.undefined_iou`). `clean` mode
    accepts queries without windows and rejects such windows.
    """
    windows = _tuples(rows, "pred_relevant_windows", ("start", "end", "score"))
    if mode == "clean":
        _check_order(rows, "pred_relevant_windows", windows)
        return windows
    empty = np.flatnonzero(windows.counts == 0)
    if len(empty):
        rule = "'pred_relevant_windows' is empty, which only mode 'clean' scores (as a miss)"
        raise rows.error(int(empty[0]), rule)
    return windows


def clip_ratings(rows: RowFile) -> tuple[Ragged, Ragged]:
    """Annotated clips: ids (total,) and their ratings (total, raters), one list per record.

    Raises:
        DataError: invalid clip ids, lists of different length, or a number of raters that
            differs from that of earlier records.
    """
    ids = number_lists(rows, "relevant_clip_ids")
    wrong = np.flatnonzero((ids.values < 0) | (ids.values % 1 != 0))
    if len(wrong):
        index = int(ids.owners()[wrong[0]])
        rule = f"'relevant_clip_ids' must be clip numbers from 0, found {ids.values[wrong[0]]:g}"
        raise rows.error(index, rule)
    ratings = rating_lists(rows)
    for index in np.flatnonzero(ids.counts != ratings.counts)[:1].tolist():
        rule = (
            f"{ids.counts[index]} 'relevant_clip_ids' but {ratings.counts[index]} 'saliency_scores'"
        )
        raise rows.error(index, rule)
    return ids, ratings


def rating_lists(rows: RowFile) -> Ragged:
    """`saliency_scores`: (total, raters), the same number of raters everywhere."""
    lists = [_list_field(rows, index, "saliency_scores") for index in range(len(rows))]
    first = next((clip for clips in lists for clip in clips), ())
    raters = max(1, len(first)) if type(first) in _LIST else 1
    _check_entries(rows, "saliency_scores", lists, raters, f"a list of {raters} ratings")
    return _stacked(rows, "saliency_scores", lists, raters)


def video_ids(rows: RowFile) -> list[str]:
    """The video of each query; a record without 'vid' counts as a video of its own."""
    return [str(row.get("vid", f"qid {row['qid']}")) for row in rows]


def _tuples(rows: RowFile, key: str, parts: Sequence[str]) -> Ragged:
    width = len(parts)
    lists = [_list_field(rows, index, key) for index in range(len(rows))]
    _check_entries(rows, key, lists, width, f"[{', '.join(parts)}]")
    return _stacked(rows, key, lists, width)


def _check_entries(
    rows: RowFile, key: str, lists: Sequence[Sequence[Any]], width: int, wanted: str
) -> None:
    for index, entries in enumerate(lists):
        if set(map(type, entries)) <= _LIST and set(map(len, entries)) <= {width}:
            continue
        wrong = next(entry for entry in entries if type(entry) not in _LIST or len(entry) != width)
        raise rows.error(index, f"each entry of {key!r} must be {wanted}, found {show(wrong)}")


def _check_order(rows: RowFile, key: str, windows: Ragged) -> None:
    inverted = np.flatnonzero(windows.values[:, 1] < windows.values[:, 0])
    if len(inverted):
        start, end = windows.values[inverted[0], :2]
        index = int(windows.owners()[inverted[0]])
        raise rows.error(index, f"a window of {key!r} ends before it starts: [{start:g}, {end:g}]")


def _stacked(rows: RowFile, key: str, lists: Sequence[Sequence[Any]], width: int) -> Ragged:
    """Lists of `width` numbers each: (total, width)."""
    counts = _counts(lists)
    flat = list(chain.from_iterable(chain.from_iterable(lists)))
    return Ragged(_numbers(rows, key, flat, counts * width).reshape(-1, width), counts)


def _numbers(rows: RowFile, key: str, flat: list[Any], counts: Integers) -> Floats:
    """`flat` as an array; its values are grouped by record, `counts` (n,) each."""
    if set(map(type, flat)) <= _NUMBER:
        try:
            values = np.array(flat, dtype=np.float64)
        except OverflowError:  # an integer above 1e308
            values = np.array([np.nan])
        if np.isfinite(values).all():
            return values
    place, wrong = next((i, v) for i, v in enumerate(flat) if not _is_finite_number(v))
    index = int(np.searchsorted(np.cumsum(counts), place, side="right"))
    raise rows.error(index, f"{key!r} must hold finite numbers, found {show(wrong)}")


def _is_finite_number(value: Any) -> bool:
    return type(value) in _NUMBER and abs(value) <= sys.float_info.max


def _field(rows: RowFile, index: int, key: str) -> Any:
    row = rows[index]
    if key not in row:
        raise rows.error(index, f"has no {key!r}")
    return row[key]


def _list_field(rows: RowFile, index: int, key: str) -> Sequence[Any]:
    value = _field(rows, index, key)
    if type(value) not in _LIST:
        raise rows.error(index, f"{key!r} must be a list, found {show(value)}")
    checked: Sequence[Any] = value
    return checked


def _counts(lists: Sequence[Sequence[Any]]) -> Integers:
    return np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
