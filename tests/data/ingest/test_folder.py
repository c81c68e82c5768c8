from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrmodel.data.ingest.folder import import_folder
from mrmodel.data.ingest.summary import CorpusSummary
from mrmodel.errors import DataError
from mrmodel.progress import NullReporter
from tests.synthetic.conftest import bytes_of, read_rows

Make = Callable[[], Path]


def bring(folder: Path, out: Path) -> tuple[CorpusSummary, dict[str, Any]]:
    summary = import_folder(folder, 2.0, out, NullReporter())
    return summary, json.loads((out / "corpus.json").read_text())


def append(path: Path, *lines: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def row_of(vid: str, **changes: Any) -> str:
    row: dict[str, Any] = {
        "qid": 900,
        "query": "someone waves",
        "vid": vid,
        "duration": 20,
        "relevant_windows": [[2, 4]],
    }
    return json.dumps(row | changes)


def test_a_good_folder_arrives_whole(own_folder: Make, tmp_path: Path, small_corpus: Path) -> None:
    folder = own_folder()
    summary, details = bring(folder, tmp_path / "out")
    assert summary.rejected == 0
    assert summary.reported_split == "test"
    assert summary.videos == {"pretrain": 1, "train": 1, "val": 1, "test": 1}
    assert details["rejected_rows"] == details["unused_videos"] == []
    expected, found = bytes_of(small_corpus), bytes_of(tmp_path / "out")
    del expected["corpus.json"], found["corpus.json"]
    assert found == expected


def test_twice_the_same_bytes_and_the_folder_untouched(own_folder: Make, tmp_path: Path) -> None:
    folder = own_folder()
    before = bytes_of(folder)
    bring(folder, tmp_path / "first")
    bring(folder, tmp_path / "second")
    bring(folder, tmp_path / "second")
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
    assert bytes_of(folder) == before
    copied = tmp_path / "first" / "videos" / "train-0000.mp4"
    assert not copied.samefile(folder / "videos" / "train-0000.mp4")


def test_without_test_and_captions_val_is_reported(own_folder: Make, tmp_path: Path) -> None:
    folder = own_folder()
    (folder / "test.jsonl").unlink()
    (folder / "captions.jsonl").unlink()
    summary, details = bring(folder, tmp_path / "out")
    assert summary.reported_split == details["reported_split"] == "val"
    assert (tmp_path / "out" / "test.jsonl").read_bytes() == b""
    assert (tmp_path / "out" / "captions.jsonl").read_bytes() == b""
    assert sorted(path.name for path in (tmp_path / "out" / "videos").iterdir()) == [
        "train-0000.mp4",
        "val-0000.mp4",
    ]
    assert len(details["unused_videos"]) == 2


def test_videos_that_no_row_names_come_on_request(own_folder: Make, tmp_path: Path) -> None:
    folder = own_folder()
    (folder / "test.jsonl").unlink()
    (folder / "captions.jsonl").unlink()
    (folder / "videos" / "broken.mp4").write_bytes(b"no video")
    import_folder(folder, 2.0, tmp_path / "out", NullReporter(), every_video=True)
    copied = {path.name for path in (tmp_path / "out" / "videos").iterdir()}
    assert copied == {path.name for path in (folder / "videos").iterdir()} - {"broken.mp4"}
    details = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert details["unused_videos"] == ["broken.mp4"]
    assert "broken" in details["rejected_videos"]


def test_bad_rows_are_listed_with_line_and_reason(own_folder: Make, tmp_path: Path) -> None:
    folder = own_folder()
    good = len(read_rows(folder / "train.jsonl"))
    append(
        folder / "train.jsonl",
        "not json",
        row_of("trian-0000", qid=901),
        row_of("train-0000", qid=902, relevant_windows=[[4, 2]]),
        row_of("train-0000", qid=903, relevant_windows=[]),
        row_of("train-0000", qid=904, duration=150),
        row_of("train-0000", qid=1),
        row_of("train-0000", qid=905, note="further keys stay"),
    )
    summary, details = bring(folder, tmp_path / "out")
    rows = read_rows(tmp_path / "out" / "train.jsonl")
    assert len(rows) == good + 1 == summary.queries["train"]
    assert rows[-1]["note"] == "further keys stay"
    assert summary.rejected == 6
    found = {(row["file"], row["line"]): row["rule"] for row in details["rejected_rows"]}
    rules = [found["train.jsonl", good + number] for number in range(1, 7)]
    assert "not valid JSON" in rules[0]
    assert "no video 'trian-0000' in videos/; did you mean 'train-0000'" in rules[1]
    assert "starts at or after its end" in rules[2]
    assert "no relevant_windows" in rules[3]
    assert "lasts 20.0 s, less than the row says" in rules[4]
    assert "qid is used already in line 1" in rules[5]


def test_rated_clips_do_without_windows(own_folder: Make, tmp_path: Path) -> None:
    """TVSum and YouTube Highlights have ratings only."""
    folder = own_folder()
    rated = {"relevant_clip_ids": [0, 1], "saliency_scores": [[1], [0]]}
    append(
        folder / "train.jsonl", row_of("train-0000", relevant_windows=None, domain="BK", **rated)
    )
    summary, _ = bring(folder, tmp_path / "out")
    assert summary.rejected == 0
    assert read_rows(tmp_path / "out" / "train.jsonl")[-1]["domain"] == "BK"


def test_rows_to_pretrain_on_arrive_with_or_without_ratings(
    own_folder: Make, tmp_path: Path
) -> None:
    folder = own_folder()
    rated = {"relevant_clip_ids": [1], "saliency_scores": [[2, 3, 4]]}
    scaled = {"relevant_clip_ids": [1], "saliency_scores": [[12.18]]}
    append(
        folder / "pretrain.jsonl",
        row_of("train-0000", qid=1, **rated),
        row_of("val-0000", qid="x_0_10.0", **scaled),
    )
    append(folder / "pretrain_val.jsonl", row_of("val-0000", **rated))
    summary, details = bring(folder, tmp_path / "rated")
    (kept,) = read_rows(tmp_path / "rated/pretrain.jsonl")
    assert kept["saliency_scores"] == rated["saliency_scores"]
    (refused,) = details["rejected_rows"]
    assert (refused["file"], refused["line"]) == ("pretrain.jsonl", 2)
    assert "ratings lie in 0..4" in refused["rule"]
    assert (summary.queries["pretrain"], summary.queries["pretrain_val"]) == (1, 1)
    import_folder(folder, 2.0, tmp_path / "plain", NullReporter(), pretrain_ratings=False)
    details = json.loads((tmp_path / "plain/corpus.json").read_text())
    rows = read_rows(tmp_path / "plain/pretrain.jsonl")
    assert [row["qid"] for row in rows] == [1, "x_0_10.0"]
    assert all("saliency_scores" not in row for row in rows)
    assert not any("relevant_clip_ids" in row for row in rows)
    assert details["rejected_rows"] == []
    assert details["videos"]["pretrain"] == 3  # those of the captions and of the rows
    assert details["videos_in_two_splits"]["pretrain, val"] == ["val-0000"]


def test_bad_videos_are_listed_and_cost_their_rows(own_folder: Make, tmp_path: Path) -> None:
    folder = own_folder()
    (folder / "videos" / "broken.mp4").write_bytes(b"this is no video")
    clip = (folder / "videos" / "train-0000.mp4").read_bytes()
    (folder / "videos" / "twice.mp4").write_bytes(clip)
    (folder / "videos" / "twice.MOV").write_bytes(clip)
    append(folder / "val.jsonl", row_of("broken", qid=950), row_of("twice", qid=951))
    append(folder / "captions.jsonl", '{"YoutubeID": "broken"}', "[]", '{"YoutubeID": NaN}')
    summary, details = bring(folder, tmp_path / "out")
    assert summary.rejected == 5
    assert list(details["rejected_videos"]) == ["broken"]
    assert details["rejected_videos"]["broken"].startswith("invalid_data")
    rules = {row["id"]: row["rule"] for row in details["rejected_rows"]}
    assert "broken.mp4 cannot be read: invalid_data" in rules[950]
    assert "several files of one name (twice.MOV, twice.mp4)" in rules[951]
    assert {"broken.mp4", "twice.mp4", "twice.MOV"} == set(details["unused_videos"])


def test_segments_of_a_longer_video_and_other_containers(own_folder: Make, tmp_path: Path) -> None:
    folder = own_folder()
    (folder / "videos" / "train-0000.mp4").rename(folder / "videos" / "Party.Mov")
    (folder / "train.jsonl").write_text("")
    append(
        folder / "train.jsonl",
        row_of("Party_4.0_14.0", qid=1, duration=10),
        row_of("Party_16.0_28.0", qid=2, duration=12),
    )
    _, details = bring(folder, tmp_path / "out")
    assert [row["qid"] for row in read_rows(tmp_path / "out" / "train.jsonl")] == [1]
    assert "lasts 20.0 s" in details["rejected_rows"][0]["rule"]
    assert (tmp_path / "out" / "videos" / "Party.Mov").exists()


def test_a_video_in_two_splits_is_said(own_folder: Make, tmp_path: Path) -> None:
    folder = own_folder()
    append(folder / "val.jsonl", row_of("train-0000", qid=960))
    _, details = bring(folder, tmp_path / "out")
    assert details["videos_in_two_splits"] == {"train, val": ["train-0000"]}


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_missing_split_stops(own_folder: Make, tmp_path: Path, name: str) -> None:
    folder = own_folder()
    (folder / f"{name}.jsonl").unlink()
    with pytest.raises(DataError, match=rf"{name}\.jsonl: is missing; a folder needs"):
        bring(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "nonsense\n", row_of("nowhere") + "\n"])
def test_a_split_without_a_usable_row_stops(own_folder: Make, tmp_path: Path, text: str) -> None:
    folder = own_folder()
    (folder / "test.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"test\.jsonl.*no usable row; the first is refused"):
        bring(folder, tmp_path / "out")


def test_missing_or_empty_videos_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        bring(tmp_path / "own", tmp_path / "out")
    (tmp_path / "own" / "videos").mkdir(parents=True)
    (tmp_path / "own" / "videos" / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="holds no video file"):
        bring(tmp_path / "own", tmp_path / "out")


def test_windows_line_ends_keep_the_line_numbers(own_folder: Make, tmp_path: Path) -> None:
    folder = own_folder()
    text = (folder / "val.jsonl").read_text()
    (folder / "val.jsonl").write_bytes(("\n" + text).replace("\n", "\r\n").encode())
    bring(folder, tmp_path / "out")
    assert (tmp_path / "out" / "val.jsonl").read_text() == text
