"""Caption tables in all formats, damaged ones, and interrupted runs of the filter."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrmodel.errors import DataError, OutputError
from mrmodel.pretraining.intervid import filtering
from mrmodel.pretraining.intervid.caption_files import read_chunks
from mrmodel.pretraining.intervid.captions import COLUMNS
from tests.limits import files_of_at_most
from tests.pretraining.tables import filter_table, row, write_table

ROWS = [
    row(f"video{number:06d}", caption=f'a "big" dog, and cat {number}, run in a café')
    for number in range(9)
]
BAD = row("video000020", UMT_Score=float("nan"))


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    write_table(path, rows)


def write_gzip(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(one) + "\n" for one in rows).encode()))


def write_zstd(path: Path, rows: list[dict[str, Any]]) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write("".join(json.dumps(one) + "\n" for one in rows).encode())


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS[::-1])
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "c.jsonl": write_json,
    "c.jsonl.gz": write_gzip,
    "c.jsonl.zst": write_zstd,
    "c.csv": write_csv,
    "c.csv.gz": write_csv,
    "c.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_all_formats_give_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [*ROWS, BAD])
    found = filter_table(tmp_path / name, chunk_rows=4, captions__max_bad_row_share=1.0)
    write_json(tmp_path / "same.jsonl", [*ROWS, BAD])
    same = filter_table(tmp_path / "same.jsonl", captions__max_bad_row_share=1.0)
    columns = [name for name in found.kept.columns if name != "line"]
    assert found.kept[columns].equals(same.kept[columns])
    assert len(found.kept) == 9
    assert found.record["rows"] == {"read": 10, "bad": {"bad_score": 1}, "normalised": 0}
    assert found.rejects[0]["line"] == 11 if ".csv" in name else 10


def test_rows_of_csv_that_do_not_fit_its_header(tmp_path: Path) -> None:
    write_csv(tmp_path / "c.csv", [row(caption="a dog runs\non the wide beach"), *ROWS])
    with (tmp_path / "c.csv").open("ab") as file:
        file.write(b"1,2\n\nx,y,a caf\xe9 by the sea,00:00:01.000,00:00:00.000,abcdefghijk\n")
    found = filter_table(tmp_path / "c.csv", captions__max_bad_row_share=1.0)
    shown = [(item["line"], item["reason"]) for item in found.rejects]
    assert shown == [(13, "field_count"), (15, "not_text")]
    assert sorted(found.kept["line"])[:2] == [2, 4]


DAMAGE = {
    "c.jsonl": r"c\.jsonl:9: the file ends within this line",
    "c.jsonl.gz": r"c\.jsonl\.gz:\d+: the compressed file is damaged or cut off after line \d",
    "c.jsonl.zst": r"c\.jsonl\.zst:\d+: the compressed file is damaged or cut off after line \d",
    "c.csv": r"c\.csv:10: the file ends within this line",
    "c.csv.gz": r"c\.csv\.gz:\d+: the compressed file is damaged or cut off after line \d",
    "c.parquet": r"c\.parquet:1: no complete parquet file",
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_table_is_an_error_with_its_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=DAMAGE[name]):
        filter_table(path, chunk_rows=2)
    assert not list(tmp_path.glob("out/*"))
    WRITERS[name](path, ROWS)
    assert len(filter_table(path, chunk_rows=2).kept) == 9


def test_an_open_quote_in_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "c.csv", ROWS)
    with (tmp_path / "c.csv").open("a") as file:
        file.write('0.5,0.5,"a dog')
    with pytest.raises(DataError, match=r"c\.csv:11: not valid CSV: .*cut off"):
        filter_table(tmp_path / "c.csv")


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("c.jsonl", '{"video": "x", "Caption": "y"}\n', r"c\.jsonl:1: lacks the columns Youtube"),
        ("c.jsonl", "YoutubeID,Caption\n", "expected one JSON object a line"),
        ("c.csv", "YoutubeID,Caption\n", r"c\.csv:1: lacks the columns Start_timestamp"),
        ("c.gz", "", "is named as no caption table"),
        ("c.parquet.gz", "", "is named as no caption table"),
        ("c.jsonl.gz", "text", r"c\.jsonl\.gz:1: the compressed file is damaged"),
        ("c.parquet", "text", "no complete parquet file"),
    ],
)
def test_files_of_another_kind_stop_the_filter(
    tmp_path: Path, name: str, content: str, rule: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rule):
        filter_table(tmp_path / name)


def test_a_missing_table_and_columns_of_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such caption table"):
        filter_table(tmp_path / "none.jsonl")
    pq.write_table(pa.table({"Caption": ["a dog"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet: lacks the columns YoutubeID"):
        filter_table(tmp_path / "c.parquet")


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet"])
def test_chunks_cover_the_table(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ROWS[:7])
    chunks = list(read_chunks(tmp_path / name, 3))
    assert [len(chunk.lines) + len(chunk.records) for chunk in chunks] == [3, 3, 1]


def test_parts_of_an_interrupted_run_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, parsed = write_table(tmp_path / "c.jsonl", ROWS), list[int]()
    whole = filter_table(path, chunk_rows=2)
    files = {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()}

    def counted(chunk: Any, given: Any, stop_at: int = 4) -> Any:
        if len(parsed) == stop_at:
            raise KeyboardInterrupt
        parsed.append(chunk.first_line)
        return parse(chunk, given)

    parse = filtering.parse_chunk
    monkeypatch.setattr(filtering, "parse_chunk", counted)
    with pytest.raises(KeyboardInterrupt):
        filter_table(path, chunk_rows=2)
    assert not (tmp_path / "out" / "filter.json").exists()
    monkeypatch.setattr(filtering, "parse_chunk", lambda *given: counted(*given, stop_at=99))
    again = filter_table(path, chunk_rows=2)
    assert parsed == [1, 3, 5, 7, 9]
    assert again.record == whole.record
    assert {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()} == files
    assert not (tmp_path / "work").exists()


def test_a_full_disk_names_the_file_and_leaves_none_of_it(tmp_path: Path) -> None:
    path = write_table(tmp_path / "c.jsonl", ROWS)
    filter_table(path)
    with files_of_at_most(500), pytest.raises(OutputError, match=r"parquet"):
        filter_table(path)
    assert not list(tmp_path.rglob(".*"))
    assert not (tmp_path / "out" / "filter.json").exists()
    assert len(filter_table(path).kept) == 9
