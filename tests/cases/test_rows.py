"""Rows that are wrong in themselves: their times and, in published files, their form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrmodel.components import DATASETS
from mrmodel.data.annotations import scan_annotations, window_clips
from mrmodel.data.check import check_file
from mrmodel.data.datasets.base import ReadOptions
from mrmodel.data.datasets.convert import ConvertRequest, convert
from mrmodel.errors import DataError
from mrmodel.types import MAX_DURATION_S

GOOD: dict[str, Any] = {"qid": 1, "query": "a red card", "vid": "base", "duration": 12.0}
NS = 1000000000.0


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"duration": NS}, "duration = 1000000000.0: longer than a day; milliseconds?"),
        ({"duration": 86_400_001}, "duration = 86400001: longer than a day; milliseconds?"),
        ({"duration": 10**400}, "is too large"),
        ({"relevant_windows": [[0, NS]]}, "lies outside the video of 12.0 s"),
        ({"relevant_windows": [[-NS, 1]]}, "lies outside the video of 12.0 s"),
        ({"relevant_clip_ids": [1, 10**18]}, "holds 1000000000000000000: the video has 6 clips"),
        ({"saliency_scores": [[1]] * 9}, "9 for 0 relevant clips"),
        ({"duration": NS, "relevant_windows": [[0, NS]]}, "longer than a day"),
    ],
)
def test_nanoseconds_and_frame_numbers(tmp_path: Path, change: dict[str, Any], rule: str) -> None:
    path = tmp_path / "rows.jsonl"
    truth = {"relevant_windows": [[2, 4]]}
    rows = [{**GOOD, **truth, **change}, {**GOOD, **truth, "qid": 2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check_file(path)
    (error,) = report.errors
    assert (error.line, error.qid, report.summary["queries"]) == (1, 1, 1)
    assert rule in error.rule


def test_a_day_of_many_windows_is_quick(tmp_path: Path) -> None:
    windows = [[start, MAX_DURATION_S] for start in range(3000)]
    row = GOOD | {"duration": MAX_DURATION_S, "relevant_windows": windows, "relevant_clip_ids": [0]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    (found,) = scan_annotations(path).rows
    assert window_clips(found.relevant_windows, 2.0) == set(range(43_200))


# What is changed in one of three videos of TACoS, and the rows that are lost by it.
ODD_VIDEOS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one frame": ({"timestamps": [[29], [60, 120]]}, ["s2-d2_0"]),
    "three frames": ({"timestamps": [[29, 58, 60], [60, 120]]}, ["s2-d2_0"]),
    "no frames": ({"timestamps": [None, [60, 120]]}, ["s2-d2_0"]),
    "a number": ({"timestamps": [29, [60, 120]]}, ["s2-d2_0"]),
    "text": ({"timestamps": [["29", "58"], [60, 120]]}, ["s2-d2_0"]),
    "nan": ({"timestamps": [[float("nan"), 58], [60, 120]]}, ["s2-d2_0"]),
    "infinite": ({"timestamps": [[29, 10**400], [60, 120]]}, ["s2-d2_0"]),
    "inverted": ({"timestamps": [[58, 29], [60, 120]]}, ["s2-d2_0"]),
    "null sentence": ({"sentences": [None, "He closes it."]}, ["s2-d2_0"]),
    "empty sentence": ({"sentences": [" ", "He closes it."]}, ["s2-d2_0"]),
    "list of sentences": ({"sentences": [["A"], "He closes it."]}, ["s2-d2_0"]),
    "half an emoji": ({"sentences": ["\ud83d", "He closes it."]}, ["s2-d2_0"]),
    "no fps": ({"fps": 0}, ["s2-d2"]),
    "huge": ({"num_frames": 10**400}, ["s2-d2"]),
    "fewer sentences": ({"sentences": ["A man opens a door."]}, ["s2-d2"]),
    "frames in place of seconds": ({"fps": 1e-3}, ["s2-d2_0", "s2-d2_1"]),
    "not finite": ({"num_frames": float("inf")}, ["s2-d2_0", "s2-d2_1"]),
}


@pytest.mark.parametrize("name", ODD_VIDEOS)
def test_an_odd_row_of_tacos_costs_itself_only(tmp_path: Path, name: str) -> None:
    change, lost = ODD_VIDEOS[name]
    sentences = ["A man opens a door.", "He closes it."]
    good = {"timestamps": [[29, 58], [60, 120]], "sentences": sentences}
    good |= {"fps": 29.4, "num_frames": 3000}
    for split in ("train", "val", "test"):
        videos = {f"{split}{number}.avi": good for number in (1, 2)}
        if split == "train":
            videos = {"train1.avi": good, "s2-d2.avi": good | change, "train2.avi": good}
        (tmp_path / f"{split}.json").write_text(json.dumps(videos))
    report = convert(ConvertRequest("tacos", tmp_path, tmp_path / "out"))
    assert [error.qid for error in report.rejected] == lost
    assert {Path(str(error.file)).name for error in report.rejected} == {"train.json"}
    qids = [row["qid"] for row in report.divided.rows["train"]]
    alone = {"s2-d2_0", "s2-d2_1"} - set(lost) if lost != ["s2-d2"] else set()
    assert qids == ["train1_0", "train1_1", *sorted(alone), "train2_0", "train2_1"]
    recorded = json.loads((tmp_path / "out/dataset.json").read_text())["rejected"]
    assert [one["id"] for one in recorded] == lost
    assert check_file(tmp_path / "out/train.jsonl").errors == []


def test_a_video_of_tacos_that_is_there_twice(tmp_path: Path) -> None:
    video = {"timestamps": [[29, 58]], "sentences": ["x"], "fps": 29.4, "num_frames": 3000}
    text = json.dumps(video)
    (tmp_path / "train.json").write_text(f'{{"a.avi": {text}, "a.avi": {text}, "a": {text}}}')
    table = DATASETS.get("tacos")().read(tmp_path / "train.json", ReadOptions())
    assert [row["qid"] for row in table.rows] == ["a_0"]
    rules = [error.rule for error in table.rejected]
    assert rules == [
        "the video is there twice; its first rows are left out",
        "the video is there already, as 'a.avi'",
    ]


@pytest.fixture
def charades(tmp_path: Path) -> Path:
    (tmp_path / "charades_sta_train.txt").write_text(
        "AAA 0.0 6.9##a person opens a door.\nBBB 1.0 5.0##person sits.\n"
        "CCC 1.2.3 5.0##person sits.\nDDD 1.0 5.0##person stands.\nEEE 1.0 5.0##person runs.\n"
    )
    (tmp_path / "charades_sta_test.txt").write_text("TTT 0.0 6.9##a person opens a door.\n")
    (tmp_path / "Charades_v1_test.csv").write_text("id,subject,length\nTTT,x,30.5\n")
    table = tmp_path / "Charades_v1_train.csv"
    table.write_text(
        'id,subject,length\nAAA,"a\nb",30.5\nBBB,y,20.0\nDDD,z,long\nEEE,z,nan\nFFF,z\n'
    )
    return tmp_path


def test_odd_rows_of_charades_and_of_its_table(charades: Path) -> None:
    report = convert(ConvertRequest("charades", charades, charades / "out"))
    found = {error.line: error.rule for error in report.rejected}
    assert "'CCC 1.2.3 5.0##person sits.': START and END must be seconds" in found[3]
    assert 'Charades_v1_train.csv:5: duration = "long": expected a number' in found[4]
    assert "Charades_v1_train.csv:6: duration = NaN: is too large" in found[5]
    assert len(report.rejected) == len(found) == 3
    rows = [row for part in ("train", "val") for row in report.divided.rows[part]]
    assert sorted(row["vid"] for row in rows) == ["AAA", "BBB"]


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        (
            "Charades_v1_train.csv",
            "id,s,length\nAAA,caf\u00e9,3\n".encode("latin-1"),
            ":2: not UTF-8",
        ),
        ("Charades_v1_train.csv", "id,s,length\n".encode("utf-16"), ": the file is UTF-16 text"),
        ("Charades_v1_train.csv", b"AAA,x,30.5\n", ":1: expected columns 'id' and 'length'"),
        ("Charades_v1_train.csv", b"", "expected columns 'id' and 'length'"),
        ("Charades_v1_train.csv", b'id,length\nA,"' + b"x" * 140_000, "field larger than field"),
        (
            "charades_sta_train.txt",
            b"AAA 0 1##caf\xe9\n",
            ":1: not UTF-8 text: byte 0xe9 at column",
        ),
    ],
)
def test_a_file_of_charades_in_another_form(
    charades: Path, name: str, content: bytes, rule: str
) -> None:
    (charades / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        convert(ConvertRequest("charades", charades, charades / "out"))
    assert str(raised.value).startswith(str(charades / name))
    assert rule in str(raised.value)


def test_a_table_with_a_byte_order_mark(charades: Path) -> None:
    table = charades / "Charades_v1_train.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    test_odd_rows_of_charades_and_of_its_table(charades)


LABELLED = {"query": "x", "vid": "v", "domain": "dog", "duration": 4, "fps": 25}
LABELLED |= {"label": [[1], [0]], "clip": [[0, 50], [50, 100]]}


@pytest.mark.parametrize(
    "change",
    [
        {"duration": NS},
        {"duration": 10**400},
        {"duration": "4"},
        {"fps": float("inf")},
        {"clip": [[0, 10**400], [50, 100]]},
        {"clip": [[0], [50, 100]]},
        {"label": [[float("nan")], [0]]},
        {"query": "\ud83d"},
        {"vid": "a\0b"},
        {"domain": ["dog"]},
        {"qid": 1e999},
        {"label": [[1]] * 9, "clip": [[0, 50]] * 9},
    ],
)
def test_an_odd_row_of_youtube_highlights_costs_itself_only(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "youtube_train.jsonl"
    rows = [{"qid": 1, **LABELLED}, {"qid": 2, **LABELLED, **change}, {"qid": 3, **LABELLED}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for grid in ("seconds", "published"):
        table = DATASETS.get("youtube_hl")().read(path, ReadOptions(label_grid=grid))
        if "label" in change and grid == "seconds" and len(change["label"]) > 2:
            continue  # labels are resampled, so their number says nothing
        if ("fps" in change or "clip" in change) and grid == "published":
            continue  # not read
        assert [row["qid"] for row in table.rows] == [1, 3]
        (error,) = table.rejected
        assert (error.file, error.line) == (path, 2)
