import json
from dataclasses import replace
from pathlib import Path

import pytest

from mrmodel.data.annotations import read_annotations
from mrmodel.errors import DataError
from mrmodel.stages.test_set import TestSetContents, freeze
from tests.project import Project


@pytest.fixture(scope="module")
def frozen(reproduced: Project) -> TestSetContents:
    folder = reproduced.folder
    rows = read_annotations(folder / "data/miniature/test.jsonl")
    return freeze("test", rows, folder / "features/miniature/tiny.video")


def test_it_knows_every_video_by_its_bytes(frozen: TestSetContents, reproduced: Project) -> None:
    assert set(frozen.videos) == {row["vid"] for row in frozen.rows}
    assert all(len(digest) == 64 for digest in frozen.videos.values())
    written = json.loads(reproduced.read("reports/evaluation/test_set.json"))
    assert written == frozen.as_json()


def test_the_digest_sees_windows_and_videos_and_not_the_order(frozen: TestSetContents) -> None:
    assert replace(frozen, rows=frozen.rows[::-1]).digest == frozen.digest
    moved = dict(frozen.rows[0]) | {"relevant_windows": [[0.0, 2.0]]}
    assert replace(frozen, rows=(moved, *frozen.rows[1:])).digest != frozen.digest
    assert replace(frozen, rows=frozen.rows[1:]).digest != frozen.digest
    vid = next(iter(frozen.videos))
    assert replace(frozen, videos={**frozen.videos, vid: "0" * 64}).digest != frozen.digest


def test_a_part_of_a_video_is_frozen_with_the_whole_of_it(
    frozen: TestSetContents, reproduced: Project
) -> None:
    stream = reproduced.folder / "features/miniature/tiny.video"
    (row, *_) = read_annotations(reproduced.folder / "data/miniature/test.jsonl")
    part = replace(row, vid=f"{row.vid}_0_10", duration=10.0)
    assert freeze("test", [part], stream).videos == {row.vid: frozen.videos[row.vid]}


def test_what_is_written_is_read_again_and_checked(frozen: TestSetContents, tmp_path: Path) -> None:
    text = json.dumps(frozen.as_json())
    assert TestSetContents.from_json(text, "x").digest == frozen.digest
    with pytest.raises(DataError, match="was changed"):
        TestSetContents.from_json(
            text.replace('"split": "test"', '"split": "test", "x": 1').replace(
                frozen.rows[0]["query"], "another"
            ),
            "x",
        )
    with pytest.raises(DataError, match="no frozen test set"):
        TestSetContents.from_json("[]", "x")
