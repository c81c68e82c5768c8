"""What every registered data set must do; a new one needs a folder below tests/data/published.

That folder holds a miniature of the published files, under their published names.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mrmodel.components import DATASETS, PROTOCOLS
from mrmodel.data.annotations import scan_annotations
from mrmodel.data.datasets.base import PublishedDataset, ReadOptions
from mrmodel.data.datasets.convert import ConvertRequest, convert, find_files
from mrmodel.errors import DataError
from mrmodel.evaluate.run import evaluate

MINIATURES = Path(__file__).parents[1] / "data/published"
SPLITS = ("train", "val", "test")

pytestmark = pytest.mark.parametrize("name", list(DATASETS))


@pytest.fixture
def dataset(name: str) -> PublishedDataset:
    found: PublishedDataset = DATASETS.get(name)()
    return found


@pytest.fixture
def source(name: str) -> Path:
    folder = MINIATURES / name
    assert folder.is_dir(), f"{name} needs a miniature of its files in {folder}"
    return folder


@pytest.fixture
def output(name: str, source: Path, tmp_path: Path) -> Path:
    report = convert(ConvertRequest(name, source, tmp_path / "out"))
    assert report.rejected == []
    return tmp_path / "out"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_says_what_it_is(name: str, dataset: PublishedDataset) -> None:
    assert dataset.name == name
    assert name in PROTOCOLS
    assert dataset.clip_len_s > 0
    assert dataset.files[0].split == "train"
    assert len({file for split in dataset.files for file in split.names}) == sum(
        len(split.names) for split in dataset.files
    )


def test_three_splits_that_share_no_video(output: Path) -> None:
    videos = [{row["vid"] for row in rows_of(output / f"{split}.jsonl")} for split in SPLITS]
    assert all(videos)
    assert sum(map(len, videos)) == len(set.union(*videos))


def test_no_row_is_lost(dataset: PublishedDataset, source: Path, output: Path) -> None:
    read = [
        row["qid"]
        for path in find_files(dataset, source).values()
        for row in dataset.read(path, ReadOptions()).rows
    ]
    written = [row["qid"] for split in SPLITS for row in rows_of(output / f"{split}.jsonl")]
    assert sorted(map(str, written)) == sorted(map(str, read))


def test_the_reported_split_was_published_and_chooses_nothing(
    dataset: PublishedDataset, source: Path, output: Path
) -> None:
    files = find_files(dataset, source)
    reported = files.get("test") or files["val"]
    expected = [row["qid"] for row in dataset.read(reported, ReadOptions()).rows]
    assert [row["qid"] for row in rows_of(output / "test.jsonl")] == expected
    held = {row["qid"] for row in rows_of(output / "val.jsonl")}
    assert held.isdisjoint(expected)


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_what_the_pipeline_reads(
    dataset: PublishedDataset, output: Path, split: str
) -> None:
    scan = scan_annotations(output / f"{split}.jsonl", dataset.clip_len_s)
    assert scan.errors == scan.warnings == []
    for row in scan.rows:
        assert row.relevant_windows or row.saliency_scores


def test_its_protocol_scores_the_reported_split(name: str, output: Path) -> None:
    truth = rows_of(output / "test.jsonl")
    protocol = PROTOCOLS.get(name)()
    metrics = evaluate(truth, [perfect(row) for row in truth], name, "clean")
    assert protocol.main_metrics(metrics)[protocol.headline] > 0.6 * protocol.best


def perfect(row: dict[str, Any]) -> dict[str, Any]:
    windows = [[*window, 1.0] for window in row.get("relevant_windows", [[0.0, 1.0]])]
    scores = dict(
        zip(row.get("relevant_clip_ids", []), row.get("saliency_scores", []), strict=True)
    )
    saliency = [float(sum(scores.get(clip, [0]))) for clip in range(max(scores, default=0) + 1)]
    return {
        "qid": row["qid"],
        "pred_relevant_windows": windows,
        "pred_saliency_scores": saliency,
    }


def test_the_same_bytes_again(name: str, source: Path, output: Path) -> None:
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    convert(ConvertRequest(name, source, output))
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert set(before) == {"dataset.json", *(f"{split}.jsonl" for split in SPLITS)}


def test_a_bad_row_is_named_and_left_out(
    name: str, dataset: PublishedDataset, source: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "published"
    shutil.copytree(source, copy)
    path = find_files(dataset, copy)["train"]
    rows = len(dataset.read(path, ReadOptions()).rows)
    with path.open("a") as file:
        file.write('{"qid": "bad", "query": 5, "vid": "x", "duration": -1}\n')
    report = convert(ConvertRequest(name, copy, tmp_path / "out"))
    assert [str(error.file) for error in report.rejected] == [str(path)]
    assert report.rejected[0].line == rows + 1
    recorded = json.loads((tmp_path / "out/dataset.json").read_text())["rejected"]
    assert [(row["file"], row["line"]) for row in recorded] == [(path.name, rows + 1)]


def test_missing_files_are_asked_for_by_name(
    name: str, dataset: PublishedDataset, tmp_path: Path
) -> None:
    tmp_path.joinpath("empty").mkdir()
    with pytest.raises(DataError) as caught:
        convert(ConvertRequest(name, tmp_path / "empty", tmp_path / "out"))
    for file in dataset.files:
        assert file.names[0] in str(caught.value)
    assert not (tmp_path / "out").exists()
