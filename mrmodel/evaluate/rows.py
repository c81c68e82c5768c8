"""Records of annotation and prediction files, with their line numbers for error messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import DataError
from mrmodel.features.keys import composed
from mrmodel.lines import json_lines
from mrmodel.text import shortened
from mrmodel.types import QueryId, differs_in_type

Row = Mapping[str, Any]

# Maximum characters of a value in an error message.
_SHOWN = 60


class RowFile(Sequence[Row]):
    """Records with their file and lines; records created in memory have neither."""

    def __init__(
        self, rows: Sequence[Row], path: Path | None = None, lines: Sequence[int] | None = None
    ) -> None:
        self._rows, self.path, self._lines = rows, path, lines

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def select(self, indices: Iterable[int]) -> RowFile:
        """The records at `indices`, with their lines."""
        chosen = list(indices)
        lines = None if self._lines is None else [self._lines[index] for index in chosen]
        return RowFile([self._rows[index] for index in chosen], self.path, lines)

    def error(self, index: int, rule: str) -> DataError:
        """The error to raise for record `index`."""
        row = self._rows[index]
        qid = row.get("qid") if isinstance(row, Mapping) else None
        if type(qid) is not int and type(qid) is not str:
            qid = None
            rule = rule if self._lines is not None else f"row {index + 1}: {rule}"
        elif len(repr(qid)) > _SHOWN:
            qid = show(qid)
        return DataError(rule, file=self.path, line=self.line(index), qid=qid)

    def line(self, index: int) -> int | None:
        """1-based line of record `index`; None for records created in memory."""
        return None if self._lines is None else self._lines[index]

    def place(self, index: int) -> str:
        """Location of record `index`, for messages about another file."""
        return f"row {index + 1}" if self._lines is None else f"{self.path}:{self._lines[index]}"


def read_rows(path: Path) -> RowFile:
    """Read a file with one JSON object per line; blank lines are skipped.

    Raises:
        DataError: no such file, not UTF-8, a line that is not a JSON object, or no records.
    """
    rows: list[Row] = []
    lines: list[int] = []
    # The validation of fields names a NaN with its field.
    for number, _, record in json_lines(path, nan=True):
        if isinstance(record, DataError):
            raise record
        rows.append(record)
        lines.append(number)
    if not rows:
        raise DataError("holds no row; expected one JSON object a line", file=path)
    return RowFile(rows, path, lines)


def as_row_file(rows: Sequence[Row]) -> RowFile:
    """`rows` as a `RowFile`; a `RowFile` is returned unchanged.

    Raises:
        DataError: there are no records, or one of them is not a mapping.
    """
    file = rows if isinstance(rows, RowFile) else RowFile(rows)
    if not len(file):
        raise DataError("there is no row to score", file=file.path)
    for index, row in enumerate(file):
        if not isinstance(row, Mapping):
            raise file.error(index, f"expected a mapping, found {show(row)}")
    return file


def show(value: object) -> str:
    """`value` as JSON-like text, truncated so that an error message stays on one line."""
    return shortened(repr(value), _SHOWN)


@dataclass(frozen=True, slots=True)
class Pairing:
    """Assignment of predictions to queries.

    Attributes:
        annotations: n kept annotations, in file order.
        predictions: m kept predictions, in file order.
        owners: (m,) query index (0..n-1) of each kept prediction.
        latest: (n,) index of the last kept prediction of each query.
    """

    annotations: RowFile
    predictions: RowFile
    owners: NDArray[np.int64]
    latest: NDArray[np.int64]

    @property
    def order(self) -> NDArray[np.int64]:
        """(n,) the queries in the order of their first predictions, in which means are summed."""
        first = np.unique(self.owners, return_index=True)[1]
        return self.owners[np.sort(first)]


def pair_rows(
    annotations: RowFile, predictions: RowFile, *, repeats: bool, allow_missing: bool
) -> Pairing:
    """Match predictions with annotations by `qid`.

    Args:
        annotations: the ground truth; each qid once.
        predictions: the submission.
        repeats: accept several predictions per qid, as the published evaluator does.
        allow_missing: keep the qids that both files have instead of raising an error.

    Raises:
        DataError: an invalid or repeated qid, qids that only one of the files has, or a prediction
            whose qid differs from an annotated one in its type, or its form of Unicode, alone.
    """
    annotated = _unique_ids(annotations)
    predicted = _ids(predictions)
    if not repeats:
        _unique_ids(predictions)
    _check_known(annotated, predictions, predicted, allow_missing=allow_missing)
    if not allow_missing:
        _check_answered(annotations, annotated, predictions, predicted)
    answered = set(predicted)
    kept = [index for qid, index in annotated.items() if qid in answered]
    if not kept:
        raise DataError("has no qid in common with the annotations", file=predictions.path)
    query_of = {annotations[index]["qid"]: query for query, index in enumerate(kept)}
    rows = [index for index, qid in enumerate(predicted) if qid in query_of]
    owners = np.array([query_of[predicted[index]] for index in rows], dtype=np.int64)
    latest = np.zeros(len(kept), dtype=np.int64)
    np.maximum.at(latest, owners, np.arange(len(rows)))
    return Pairing(annotations.select(kept), predictions.select(rows), owners, latest)


def _ids(rows: RowFile) -> list[QueryId]:
    found: list[QueryId] = []
    for index, row in enumerate(rows):
        if "qid" not in row:
            raise rows.error(index, "has no 'qid'")
        qid = row["qid"]
        if type(qid) is not int and type(qid) is not str:
            raise rows.error(index, f"'qid' must be an integer or a string, found {show(qid)}")
        found.append(qid)
    return found


def _unique_ids(rows: RowFile) -> dict[QueryId, int]:
    ids, seen = _ids(rows), dict[str, int]()
    for index, qid in enumerate(ids):
        first = seen.setdefault(str(qid), index)
        if first != index:
            rule = f"repeats the qid of {rows.place(first)}"
            raise rows.error(index, rule + differs_in_type(qid, ids[first]))
    return {qid: index for index, qid in enumerate(ids)}


def _check_known(
    annotated: Mapping[QueryId, int],
    predictions: RowFile,
    predicted: Sequence[QueryId],
    *,
    allow_missing: bool,
) -> None:
    if all(qid in annotated for qid in predicted):
        return
    by_text = {composed(str(qid)): qid for qid in annotated}
    for index, qid in enumerate(predicted):
        twin = by_text.get(composed(str(qid)))
        if qid in annotated or (allow_missing and twin is None):
            continue
        hint = ""
        if twin is not None:
            kind = "of another type" if str(twin) == str(qid) else "in another form of Unicode"
            hint = f"; they have {twin!r}, {kind}"
        raise predictions.error(index, f"is not in the annotations{hint}")


def _check_answered(
    annotations: RowFile,
    annotated: Mapping[QueryId, int],
    predictions: RowFile,
    predicted: Sequence[QueryId],
) -> None:
    answered = set(predicted)
    missing = [qid for qid in annotated if qid not in answered]
    if missing:
        rule = (
            f"has no prediction for it ({len(missing)} of {len(annotated)} queries are missing; "
            f"annotated at {annotations.place(annotated[missing[0]])}); "
            "allow missing queries to score only those that both files have"
        )
        raise DataError(rule, file=predictions.path, qid=missing[0])
