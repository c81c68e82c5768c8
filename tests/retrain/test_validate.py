"""Every rule about the rows and files of a delivery."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrmodel.config.schema import Config
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.deliveries import delivery_in
from mrmodel.retrain.validate import ValidatedDelivery, check_folder
from tests.project import Project
from tests.retrain.conftest import FOLDER, Parcel, Rows, write_rows

Make = Callable[..., Parcel]
Check = Callable[[Parcel], ValidatedDelivery]
# Of 43 rows: a few bad ones are left out, and the rest is taken.
TRAIN, VAL, CAPTIONS = "train.jsonl", "val.jsonl", "captions.jsonl"


@pytest.fixture
def check(reference: Reference, config: Config) -> Check:
    def checking(parcel: Parcel) -> ValidatedDelivery:
        return check_folder(parcel.folder, delivery_in(parcel.folder), reference, config)

    return checking


def edit_first(rows: Rows, change: dict[str, Any]) -> None:
    rows[0] |= change


@pytest.mark.parametrize(
    ("table", "change", "rule"),
    [
        (TRAIN, {"duration": "long"}, 'duration = "long": expected a number'),
        (TRAIN, {"relevant_windows": [], "saliency_scores": []}, "no relevant_windows"),
        (VAL, {"vid": "new-train-9"}, "no video 'new-train-9', neither delivered nor in the data"),
        (TRAIN, {"duration": 90.0}, "its video new-train-0000.mp4 lasts 20.0 s"),
        (TRAIN, {"vid": "train-0000", "duration": 90.0}, "other rows say that 'train-0000' lasts"),
        (TRAIN, {"vid": "test-0001"}, "'test-0001' is a video of the test split"),
        (VAL, {"vid": "test-0001_0_10", "duration": 10.0}, "'test-0001' is a video of the test"),
        (CAPTIONS, {"YoutubeID": "test-0000"}, "'test-0000' is a video of the test split"),
        (CAPTIONS, {"End_timestamp": "soon"}, "bad_time"),
        (CAPTIONS, {"YoutubeID": "nowhere"}, "no video 'nowhere'"),
    ],
)
def test_a_bad_row_is_left_out_and_named(
    parcel: Make, check: Check, table: str, change: dict[str, Any], rule: str
) -> None:
    sent = parcel()
    # Windows that are there before would break another rule first.
    short = {"relevant_windows": [[0.0, 4.0]], "relevant_clip_ids": [0, 1]}
    short["saliency_scores"] = [[3, 3, 3], [3, 3, 3]]
    whole = change if table == CAPTIONS else {**short, **change}
    sent.change(table, lambda rows: edit_first(rows, whole))
    checked = check(sent)
    (bad,) = checked.report.bad
    assert (bad.file, bad.line) == (table, 1)
    assert rule in bad.rule
    assert checked.report.state == "taken"
    assert len(checked.lines()[table]) == len(sent.rows(table)) - 1


def test_the_rows_are_as_they_were(parcel: Make, check: Check) -> None:
    sent = parcel()
    lines = (sent.folder / TRAIN).read_bytes().splitlines()
    lines[2] = b'  {"not": "a row"}  '
    (sent.folder / TRAIN).write_bytes(b"\r\n".join(lines))
    assert check(sent).lines()[TRAIN] == lines[:2] + lines[3:]


def test_too_many_bad_rows(parcel: Make, check: Check) -> None:
    sent = parcel()
    sent.change(VAL, lambda rows: [row | {"query": ""} for row in rows])
    report = check(sent).report
    assert report.state == "quarantined"
    bad, total = len(sent.rows(VAL)), sum(len(sent.rows(name)) for name in (TRAIN, VAL, CAPTIONS))
    (reason,) = report.reasons
    assert reason.startswith(f"bad rows: {bad} of {total}, a share of {bad / total:.3g}, limit")
    assert "val.jsonl:1: qid" in reason
    assert report.figures == [], "nothing is encoded for what is refused anyway"


def test_a_test_set_is_not_delivered(parcel: Make, check: Check) -> None:
    sent = parcel()
    shutil.copyfile(sent.folder / VAL, sent.folder / "test.jsonl")
    report = check(sent).report
    assert report.state == "quarantined"
    assert report.reasons == [
        "test.jsonl: the test set is frozen; change it in the repository, which starts a new "
        "comparison line"
    ]


def test_without_a_test_set_val_is_frozen(
    parcel: Make, repository: Project, reference: Reference, config: Config, tmp_path: Path
) -> None:
    for table in (TRAIN, VAL):
        shutil.copyfile(repository.folder / FOLDER / table, tmp_path / table)
    videos = dict(reference.videos.values())
    bare = Reference.read(tmp_path, videos, reference.profile, 2.0)
    sent = parcel()
    (sent.folder / VAL).unlink()
    sent.change(TRAIN, lambda rows: edit_first(rows, {"vid": "val-0000"}))
    (bad,) = check_folder(sent.folder, delivery_in(sent.folder), bare, config).report.bad
    assert "'val-0000' is a video of the val split" in bad.rule
    (sent.folder / VAL).write_text("")
    report = check_folder(sent.folder, delivery_in(sent.folder), bare, config).report
    assert report.reasons[0].startswith("val.jsonl: without test.jsonl it is what models are")


def test_videos_are_told_by_their_bytes(parcel: Make, check: Check, repository: Project) -> None:
    """A copy of a test video, one of a training video, another video of a known name, a twin."""
    there, sent = repository.folder / FOLDER / "videos", parcel()
    here = sent.folder / "videos"
    shutil.copyfile(there / "test-0002.mp4", here / "innocent.mp4")
    shutil.copyfile(there / "train-0003.mp4", here / "again.mp4")
    shutil.copyfile(here / "new-train-0000.mp4", here / "train-0004.mp4")
    shutil.copyfile(here / "new-train-0001.mp4", here / "twin.mp4")
    names = ("innocent", "again", "train-0004", "twin")
    row = sent.rows(TRAIN)[0]
    write_rows(
        sent.folder / VAL,
        [row | {"qid": f"copy-{name}", "vid": name, "query": "a copy"} for name in names],
    )
    report = check(sent).report
    assert [(bad.qid, bad.rule) for bad in report.bad] == [
        ("copy-innocent", "its video is a copy of test-0002.mp4 of the test split"),
        ("copy-again", "its video has the bytes of train-0003.mp4; name that one"),
        (
            "copy-train-0004",
            "the data hold another video as train-0004.mp4; give this one another name",
        ),
        ("copy-twin", "its video has the bytes of new-train-0001.mp4; name that one"),
    ]


def test_rows_that_the_data_hold_already(parcel: Make, check: Check, repository: Project) -> None:
    """The same row again is no mistake; the same qid with another content is one."""
    sent = parcel()
    old = Parcel(repository.folder / FOLDER)
    known = old.rows(TRAIN)[:3]
    other = old.rows(TRAIN)[3] | {"query": "something else"}
    in_train = old.rows(TRAIN)[4] | {"qid": "mine"}
    sent.change(TRAIN, lambda rows: [*rows, *known, other])
    sent.change(VAL, lambda rows: [*rows, in_train])
    sent.change(CAPTIONS, lambda rows: [*rows, *old.rows(CAPTIONS)[:2], rows[0]])
    checked = check(sent)
    assert checked.report.known == 5
    assert [(bad.file, bad.qid, bad.rule) for bad in checked.report.bad] == [
        (
            CAPTIONS,
            sent.rows(CAPTIONS)[0]["YoutubeID"],
            "the same caption stands in the table already",
        ),
        (TRAIN, other["qid"], "the data hold another row of this qid in train.jsonl"),
        (
            VAL,
            "mine",
            f"says the same of the same video as qid {old.rows(TRAIN)[4]['qid']!r} of train.jsonl",
        ),
    ]
    assert not {name for name in checked.report.videos if not name.startswith("new-")}


def test_the_same_row_twice_in_a_delivery(parcel: Make, check: Check) -> None:
    sent = parcel()
    first = sent.rows(TRAIN)[0]
    sent.change(TRAIN, lambda rows: [*rows, rows[0]])
    sent.change(VAL, lambda rows: [*rows, first | {"qid": "b", "query": f" {first['query']} "}])
    rules = [bad.rule for bad in check(sent).report.bad]
    assert rules == [
        "the qid is used already in line 1",
        f"says the same of the same video as qid {first['qid']!r} of train.jsonl",
    ]


def test_new_rows_about_old_videos_need_no_video(
    parcel: Make, check: Check, repository: Project
) -> None:
    sent = parcel()
    old = Parcel(repository.folder / FOLDER).rows(TRAIN)
    shutil.rmtree(sent.folder / "videos")
    (sent.folder / VAL).unlink()
    (sent.folder / CAPTIONS).unlink()
    rows = [row | {"qid": f"b-{row['qid']}", "query": f"{row['query']} again"} for row in old]
    write_rows(sent.folder / TRAIN, rows)
    checked = check(sent)
    assert checked.report.state == "taken"
    assert checked.report.rows == {TRAIN: len(old)}
    assert checked.videos == {}
    assert not [one for one in checked.report.figures if one.name.startswith("features")]


def test_nothing_new(parcel: Make, check: Check, repository: Project) -> None:
    sent = parcel()
    shutil.rmtree(sent.folder)
    sent.folder.mkdir()
    shutil.copyfile(repository.folder / FOLDER / TRAIN, sent.folder / TRAIN)
    report = check(sent).report
    count = len(sent.rows(TRAIN))
    assert report.reasons == [
        "brings no new row in train.jsonl, val.jsonl, captions.jsonl; "
        f"{count} rows are in the data already"
    ]


def test_what_is_left_behind_is_said(parcel: Make, check: Check) -> None:
    sent = parcel()
    shutil.copyfile(sent.folder / "videos/new-val-0000.mp4", sent.folder / "videos/spare.mp4")
    (sent.folder / "notes.txt").write_text("hello")
    checked = check(sent)
    assert checked.report.state == "taken"
    assert checked.report.notes == [
        "1 videos that no new good row is about: spare.mp4",
        "1 files that mean nothing here: notes.txt",
    ]
    assert "spare.mp4" not in checked.report.videos


def test_windows_that_are_all_wrong(parcel: Make, check: Check) -> None:
    """Each row keeps every rule; only together they show that somebody's tool was broken."""
    sent = parcel()

    def whole(rows: Rows) -> Rows:
        return [
            {key: row[key] for key in ("qid", "query", "vid", "duration")}
            | {"relevant_windows": [[0.0, 20.0]]}
            for row in rows
        ]

    for table in (TRAIN, VAL):
        sent.change(table, whole)
    report = check(sent).report
    assert report.state == "quarantined"
    assert report.bad == []
    (reason,) = [one for one in report.reasons if one.startswith("seconds of a window")]
    assert ", limit 0." in reason
