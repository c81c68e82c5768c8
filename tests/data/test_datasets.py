"""What is peculiar to each public data set, and the splits; tests/conformance has the rest."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mrmodel.cli.data import group
from mrmodel.components import DATASETS
from mrmodel.data.annotations import read_annotations
from mrmodel.data.datasets.base import ReadOptions
from mrmodel.data.datasets.convert import ConvertRequest, convert, find_files, format_report
from mrmodel.data.datasets.splits import divide
from mrmodel.data.targets import TargetSettings, TargetTable
from mrmodel.errors import DataError

MINIATURES = Path(__file__).parent / "published"
LENGTHS = "id,subject,length\nAO8RW,A,33.67\nY6R7T,B,29.42\n"


@pytest.fixture
def charades_text(tmp_path: Path) -> Path:
    """The text files and the tables with the lengths of the videos."""
    (tmp_path / "charades_sta_train.txt").write_text(
        "AO8RW 0.0 6.9##a person puts a book on a shelf.\n"
        "Y6R7T 20.8 30.8##person begins to play on a phone.\n"
        "Y6R7T 9.0 4.0##person turns back.\n"
        "Y6R7T 29.42 31.0##person leaves.\n"
        "ZZZZZ 1.0 2.0##person waves.\n"
        "no moment here\n"
        "AO8RW 8.0 9.5##person sits down.\n"
    )
    (tmp_path / "charades_sta_test.txt").write_text("Y6R8T 1.0 2.0##person waves.\n")
    (tmp_path / "Charades_v1_train.csv").write_text(LENGTHS)
    (tmp_path / "Charades_v1_test.csv").write_text("id,length\nY6R8T,12.0\n")
    return tmp_path


def test_charades_text_files(charades_text: Path, tmp_path: Path) -> None:
    report = convert(ConvertRequest("charades", charades_text, tmp_path / "out"))
    rows = {row["qid"]: row for part in report.divided.rows.values() for row in part}
    assert sorted(rows) == [0, 1, 2, 3]
    assert rows[0] == {
        "qid": 0,
        "query": "a person puts a book on a shelf.",
        "vid": "AO8RW",
        "duration": 33.67,
        "relevant_windows": [[0.0, 6.9]],
    }
    assert rows[1]["relevant_windows"] == [[20.8, 29.42]]  # cut to the video
    assert rows[3]["vid"] == "Y6R8T"  # numbers go on behind the training rows
    found = {error.line: error.rule for error in report.rejected}
    assert "the moment [9.0, 4.0] holds nothing" in found[3]
    assert "video of 29.42 s" in found[4]
    assert "vid = 'ZZZZZ': no such id in Charades_v1_train.csv" in found[5]
    assert "expected VID START END##sentence" in found[6]


def test_charades_text_files_need_the_lengths(charades_text: Path, tmp_path: Path) -> None:
    for path in charades_text.glob("*.csv"):
        path.unlink()
    with pytest.raises(DataError, match=r"lacks Charades_v1_train\.csv and Charades_v1_test\.csv"):
        convert(ConvertRequest("charades", charades_text, tmp_path / "out"))


def test_tacos_frames(tmp_path: Path) -> None:
    videos = {
        "s17-d69.avi": {
            "fps": 29.4,
            "num_frames": 12438,
            "timestamps": [[224, 358], [500, 500], [12000, 13000]],
            "sentences": ["He took out a pan ", "nothing", "He washed it"],
        },
        "s17-d70.avi": {"fps": 0, "num_frames": 10, "timestamps": [], "sentences": []},
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(videos))
    table = DATASETS.get("tacos")().read(path, ReadOptions())
    first, last = table.rows
    assert (first["qid"], first["vid"], first["query"]) == (
        "s17-d69_0",
        "s17-d69",
        "He took out a pan",
    )
    assert first["relevant_windows"] == [[pytest.approx(7.61905), pytest.approx(12.17687)]]
    assert first["duration"] == pytest.approx(423.06122)
    assert last["relevant_windows"][0][1] == last["duration"]
    assert [error.qid for error in table.rejected] == ["s17-d69_1", "s17-d70"]


def converted(name: str, folder: Path, **choices: Any) -> list[dict[str, Any]]:
    report = convert(ConvertRequest(name, MINIATURES / name, folder, **choices))
    return [row for part in report.divided.rows.values() for row in part]


def published(name: str) -> dict[str, dict[str, Any]]:
    files = find_files(DATASETS.get(name)(), MINIATURES / name).values()
    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return {row["qid"]: row for row in rows}


def test_tvsum_labels_stand_for_two_seconds_and_train_as_published(tmp_path: Path) -> None:
    truth = published("tvsum")
    for row in converted("tvsum", tmp_path):
        labels = np.array(truth[row["qid"]]["label"])
        assert row["duration"] == 2.0 * len(labels) == 2.0 * truth[row["qid"]]["duration"]
        np.testing.assert_array_equal(np.array(row["saliency_scores"]) + 1, labels)
    rows = read_annotations(tmp_path / "train.jsonl")
    counts = np.array([len(row.saliency_scores) for row in rows], dtype=np.int64)
    table = TargetTable(rows, counts, 2.0, TargetSettings(None))
    draws = np.zeros((len(rows), 4))
    targets = table.targets(np.arange(1), int(counts[0]), draws, np.zeros(0))
    labels = np.array(truth[rows[0].qid]["label"])
    expected = (labels - 1).sum(axis=1) / 80 * 12
    np.testing.assert_allclose(targets.saliency_labels[0], expected, rtol=1e-6)


def test_tvsum_refuses_labels_of_another_kind(tmp_path: Path) -> None:
    good = next(iter(published("tvsum").values()))
    rows = [
        {**good, "qid": 1, "label": [[27.0], [30.0]]},
        {**good, "qid": 2, "label": [[0.0] * 20]},
        {**good, "qid": 3, "domain": "XX"},
        {**good, "qid": 4, "label": None},
        {**good, "qid": 5},
        {**good, "qid": 5},
    ]
    path = tmp_path / "tvsum_train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = DATASETS.get("tvsum")().read(path, ReadOptions())
    assert [row["qid"] for row in table.rows] == [5]
    rules = [error.rule for error in table.rejected]
    words = [
        "has 1 values; expected 20",
        "lie in 1..5",
        "one of BK, BT",
        "must be a list",
        "line 5",
    ]
    assert all(word in rule for word, rule in zip(words, rules, strict=True))


def test_youtube_labels_by_time_and_as_published(tmp_path: Path) -> None:
    truth = published("youtube_hl")
    for row in converted("youtube_hl", tmp_path / "seconds"):
        # Clips 2 and 3, of frames 100..250 at 25 a second, are the highlights: seconds 4 to 10.
        labels = [label for (label,) in row["saliency_scores"]]
        assert len(labels) == row["duration"] == truth[row["qid"]]["duration"]
        assert labels == [int(4 <= second < 10) for second in range(len(labels))]
    for row in converted("youtube_hl", tmp_path / "published", label_grid="published"):
        assert row["saliency_scores"] == truth[row["qid"]]["label"]


def test_youtube_labels_by_time_need_the_times(tmp_path: Path) -> None:
    good = next(iter(published("youtube_hl").values()))
    rows = [{**good, "fps": None}, {**good, "clip": good["clip"][1:]}, {**good, "label": [[2]]}]
    path = tmp_path / "youtube_train.jsonl"
    path.write_text("".join(json.dumps({**row, "qid": n}) + "\n" for n, row in enumerate(rows)))
    reader = DATASETS.get("youtube_hl")()
    rules = [error.rule for error in reader.read(path, ReadOptions()).rejected]
    assert "fps = None" in rules[0]
    assert "first and last frame of all" in rules[1]
    assert "one 0 or 1 a clip" in rules[2]
    left = reader.read(path, ReadOptions(label_grid="published"))
    assert [row["qid"] for row in left.rows] == [0, 1]


def test_one_domain(tmp_path: Path) -> None:
    rows = converted("tvsum", tmp_path, domain="VT")
    assert {row["domain"] for row in rows} == {"VT"}
    record = json.loads((tmp_path / "dataset.json").read_text())
    assert record["domain"] == "VT"
    assert {name: split["rows"] for name, split in record["splits"].items()} == {
        "train": 3,
        "val": 1,
        "test": 1,
    }
    with pytest.raises(DataError, match=r"no domain 'vt'.*it has BK, BT"):
        convert(ConvertRequest("tvsum", MINIATURES / "tvsum", tmp_path, domain="vt"))
    with pytest.raises(DataError, match="Charades-STA has no domains"):
        convert(ConvertRequest("charades", MINIATURES / "charades", tmp_path, domain="VT"))


def test_videos_of_one_base_are_held_out_together() -> None:
    rows = [{"vid": f"film{n // 5}_{n}.0_{n + 1}.0"} for n in range(100)]
    divided = divide("x", {"train": rows, "val": [{"vid": "other"}]}, 0.25)
    bases = [{row["vid"].split("_")[0] for row in divided.rows[s]} for s in ("train", "val")]
    assert [len(found) for found in bases] == [15, 5]
    assert not bases[0] & bases[1]
    assert divided.rows["test"] == [{"vid": "other"}]
    again = divide("x", {"train": rows[::-1], "val": [{"vid": "other"}]}, 0.25)
    assert again.rows["val"] == divided.rows["val"][::-1]


def test_a_single_training_video_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="domain 'a' of x has a single training video"):
        divide("x", {"train": [{"vid": "v", "domain": "a"}], "test": [{"vid": "w"}]}, 0.1)


def test_annotations_of_ones_own_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text("mine\n")
    with pytest.raises(DataError, match=r"holds val\.jsonl, which this command did not write"):
        convert(ConvertRequest("tacos", MINIATURES / "tacos", tmp_path))
    assert (tmp_path / "val.jsonl").read_text() == "mine\n"


def test_a_qid_of_two_splits_is_kept_once(tmp_path: Path) -> None:
    source = tmp_path / "tacos"
    source.mkdir()
    for path in (MINIATURES / "tacos").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    train, val = source / "tacos_train_release.jsonl", source / "tacos_val_release.jsonl"
    val.write_text(val.read_text() + train.read_text().splitlines()[0] + "\n")
    report = convert(ConvertRequest("tacos", source, tmp_path / "out"))
    assert [error.rule for error in report.rejected] == [
        "the qid is used already in tacos_train_release.jsonl"
    ]
    assert len(report.divided.rows["val"]) == 4
    train.write_text(train.read_text() + "{}\n")
    val.write_text(train.read_text().splitlines()[0] + "\n")
    rule = (
        r"val_release\.jsonl: holds no usable row; the first .* val_release\.jsonl: .* used already"
    )
    with pytest.raises(DataError, match=rule.replace(" val", " .*val")):
        convert(ConvertRequest("tacos", source, tmp_path / "out"))


def test_the_command_reports_sizes_that_differ(tmp_path: Path) -> None:
    arguments = ["convert", "charades", str(MINIATURES / "charades"), "--output", str(tmp_path)]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0
    assert "charades_train_release.jsonl has 8 rows; the published one has 12404" in result.output
    assert "val: 2 rows of 1 videos (held out of published train: 1 of 4 videos)" in result.output


def test_the_commands_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path(__file__).parents[2] / "docs/howto/use_a_public_data_set.md"
    blocks = re.findall(r"```sh\n(.*?)```", guide.read_text(), flags=re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = command.replace("published", str(MINIATURES / "charades")).split()
        result = CliRunner().invoke(group, words[2:])
        assert result.exit_code == 0, result.output
    assert "0 errors, 0 warnings" in result.output


# (train, val, test) of the conversions, counted in the published files.
PUBLISHED_SIZES = {
    "qvhighlights": (7218, 1550, 1542),
    "charades": (12404, 0, 3720),
    "tacos": (9790, 4436, 4001),
    "tvsum": (40, 0, 10),
    "youtube_hl": (233, 0, 152),
}


@pytest.mark.skipif("MRMODEL_PUBLISHED" not in os.environ, reason="needs the published files")
@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_the_published_files(name: str, tmp_path: Path) -> None:
    """MRMODEL_PUBLISHED is a folder with the published files of all sets."""
    report = convert(ConvertRequest(name, Path(os.environ["MRMODEL_PUBLISHED"]), tmp_path))
    assert report.rejected == report.notes == [], format_report(report)
    rows = {split: len(found) for split, found in report.divided.rows.items()}
    train, val, test = PUBLISHED_SIZES[name]
    assert rows["test"] == test
    assert rows["val"] == val or not val
    assert rows["train"] + rows["val"] == train + val
