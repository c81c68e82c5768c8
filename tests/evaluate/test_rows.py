"""Reading files and pairing rows: every mistake is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrmodel.errors import DataError
from mrmodel.evaluate.rows import RowFile, as_row_file, pair_rows, read_rows


def test_rows_know_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"qid": 1}\r\n\n{"qid": "b"}\n', encoding="utf-8")
    rows = read_rows(path)
    assert [row["qid"] for row in rows] == [1, "b"]
    assert str(rows.error(1, "is odd")) == f"{path}:3: qid 'b': is odd"
    assert str(rows.select([1]).error(0, "is odd")) == f"{path}:3: qid 'b': is odd"


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("", None, "holds no row"),
        ("\n  \n", None, "holds no row"),
        ('{"qid": 1}\n{"qid": 2,}\n', 2, "not valid JSON"),
        ('{"qid": 1}\nnonsense\n', 2, "not valid JSON"),
        ("[1, 2]\n", None, "is one JSON array of 2 values; expected one JSON object a line"),
        ("3\n", 1, "expected a JSON object, found a number"),
        ('{"qid": ' + "[" * 100_000, 1, "not valid JSON"),
        ('{"qid": ' + "9" * 5000 + "}", 1, "not valid JSON"),
    ],
)
def test_unreadable_content(tmp_path: Path, text: str, line: int | None, rule: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert rule in str(caught.value)
    assert (caught.value.file, caught.value.line) == (path, line)
    assert len(str(caught.value)) < len(str(path)) + 250


def test_unreadable_files(tmp_path: Path) -> None:
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b'{"qid": "\xff\xfe"}')
    for path, rule in ((tmp_path / "no", "no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(DataError, match=rule):
            read_rows(path)
    with pytest.raises(DataError, match="not UTF-8"):
        read_rows(binary)


def test_rows_in_memory_must_be_mappings() -> None:
    with pytest.raises(DataError, match="no row"):
        as_row_file([])
    with pytest.raises(DataError, match="row 2: expected a mapping"):
        as_row_file([{"qid": 1}, 5])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("truth", "guesses", "rule"),
    [
        ([{"qid": 1}, {"qid": 1}], [{"qid": 1}], "repeats the qid of row 1"),
        ([{"qid": 1}], [{"qid": 1}, {"qid": 1}], "repeats the qid of row 1"),
        ([{"qid": 1}], [{"qid": 1}, {"qid": 2}], "is not in the annotations"),
        ([{"qid": 1}], [{"qid": "1"}], "they have 1, of another type"),
        ([{"qid": "1"}], [{"qid": 1}], "they have '1', of another type"),
        ([{"qid": 1}, {"qid": 2}], [{"qid": 2}], "1 of 2 queries are missing"),
        ([{}], [{"qid": 2}], "has no 'qid'"),
        ([{"qid": 1}], [{"qid": True}], "'qid' must be an integer or a string"),
        ([{"qid": 1.0}], [{"qid": 1}], "'qid' must be an integer or a string"),
        ([{"qid": [1]}], [{"qid": 1}], "'qid' must be an integer or a string"),
    ],
)
def test_qids_that_do_not_pair(truth: list, guesses: list, rule: str) -> None:
    with pytest.raises(DataError) as caught:
        pair_rows(RowFile(truth), RowFile(guesses), repeats=False, allow_missing=False)
    assert rule in str(caught.value)


def test_pairing_follows_the_annotations_and_keeps_the_last_repeat() -> None:
    truth = RowFile([{"qid": 1}, {"qid": 2}, {"qid": 3}])
    guesses = RowFile([{"qid": 3, "n": 0}, {"qid": 9}, {"qid": 1, "n": 1}, {"qid": 3, "n": 2}])
    pairing = pair_rows(truth, guesses, repeats=True, allow_missing=True)
    assert [row["qid"] for row in pairing.annotations] == [1, 3]
    assert [row["n"] for row in pairing.predictions] == [0, 1, 2]
    assert pairing.owners.tolist() == [1, 0, 1]
    assert pairing.latest.tolist() == [1, 2]


def test_files_without_a_common_qid() -> None:
    with pytest.raises(DataError, match="no qid in common"):
        pair_rows(RowFile([{"qid": 1}]), RowFile([{"qid": 2}]), repeats=True, allow_missing=True)
