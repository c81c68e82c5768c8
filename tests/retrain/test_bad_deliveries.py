"""Findings 7, 8, 15 and 20: a bad delivery is refused with a short reason, and holds up no other.

Names are in tests/security/test_names.py, retrainings that fail in test_attempts.py.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrmodel import errors, lines
from mrmodel.config.schema import Config, RetrainSettings, load_config
from mrmodel.data.annotations import parse_annotation
from mrmodel.errors import FileFormatError, StorageError
from mrmodel.files import digest_of
from mrmodel.lines import byte_lines
from mrmodel.retrain import dvc_dataset, ingest, row_checks
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.deliveries import (
    Delivery,
    delivery_in,
    download,
    excess,
    list_deliveries,
)
from mrmodel.retrain.ingest import IngestResult, _Ingestion
from mrmodel.retrain.outcomes import Ledger
from mrmodel.retrain.report import DeliveryReport
from mrmodel.retrain.row_checks import check_records
from mrmodel.retrain.videos import DeliveredVideos
from mrmodel.stages.profile import Profile
from mrmodel.storage import FolderStore, open_store
from tests.limits import files_of_at_most
from tests.project import ROOT
from tests.retrain.conftest import Parcel, Site, write_rows

Make = Callable[..., Parcel]


@pytest.fixture(scope="module")
def config() -> Config:
    """The parameters here: no repository with data is needed to read rows."""
    return load_config(ROOT / "params.yaml")


def row(**change: Any) -> dict[str, Any]:
    moment = {"relevant_windows": [[0.0, 4.0]], "relevant_clip_ids": [0, 1]}
    return {"qid": "a", "query": "a dog", "vid": "v", "duration": 20.0, **moment, **change}


def read(folder: Path, config: Config) -> row_checks.CheckedRecords:
    """The records of a delivery, as for a repository without data."""
    reference = Reference(object.__new__(Profile))
    videos = DeliveredVideos(folder / "videos", reference, 2.0, [])
    return check_records(folder, reference, videos, config)


# --- what its listing tells ---


def delivery(**sizes: int) -> Delivery:
    files = {name.replace("__", "."): size for name, size in sizes.items()}
    return Delivery("monday", "1" * 64, tuple(files), True, sizes=files)


def test_a_listing_tells_whether_a_delivery_is_too_large(config: Config) -> None:
    """Finding 8: nothing limited what is downloaded."""
    limits = config.retrain.model_copy(update={"max_files": 3, "max_gb": 0.5})
    assert excess(delivery(train__jsonl=256_000_000), limits) is None
    large = {"videos/a.mp4": 400_000_000, "videos/b.mp4": 200_000_000}
    said = {
        excess(delivery(train__jsonl=257_000_000), limits),
        excess(Delivery("a", "1", tuple(large), True, sizes=large), limits),
        excess(Delivery("a", "1", tuple("abcd"), True), limits),
        # Not downloaded, so as large as it likes.
        excess(delivery(notes__txt=10**12), limits),
    }
    assert said == {
        "train.jsonl has 257 MB, limit 256 MB; send it in parts",
        "brings 0.6 GB, limit retrain.max_gb = 0.5",
        "brings 4 files, limit retrain.max_files = 3",
        None,
    }


def test_what_is_too_large_is_refused_unread(plain: Site, parcel: Make) -> None:
    """Finding 8: neither here nor on the sender's machine, and the next one is taken."""
    big, good = parcel("big"), parcel("good")
    big.keep("new-train-0000")
    good.keep("new-train-0001")
    plain.send("good", good)
    plain.send("big", big)
    huge = Path(plain.incoming.url) / "big/videos/new-train-0000.mp4"
    os.truncate(huge, 200_000_000_000)  # sparse
    ingested = plain.take()
    assert [report.name for report in ingested.taken] == ["good"]
    (entry,) = plain.ledger.entries()
    assert entry.reasons == ["brings 200 GB, limit retrain.max_gb = 100"]


def test_files_that_cannot_be_looked_at_hide_no_other(tmp_path: Path) -> None:
    """Finding 8: a link to itself, or folders in folders, ended the listing of all deliveries."""
    (tmp_path / "good").mkdir()
    (tmp_path / "good/train.jsonl").write_text("")
    (tmp_path / "loop/videos").mkdir(parents=True)
    (tmp_path / "loop/videos/a.mp4").symlink_to("a.mp4")
    (tmp_path / "loop/here").symlink_to(".")
    # Deeper than Python calls functions, by one name that the kernel takes at a time.
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        assert list(FolderStore(tmp_path).listing()) == ["good/train.jsonl", "loop/videos/a.mp4"]
        assert delivery_in(tmp_path / "loop").sizes == {"videos/a.mp4": 0}
    finally:
        # pytest could not, for the same reason.
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


@pytest.mark.parametrize("linked", ["videos/a.mp4", "videos", "train.jsonl"])
def test_a_link_in_a_delivery_is_not_followed(tmp_path: Path, linked: str) -> None:
    """Its sender would learn, or train on, what only the worker may read."""
    secret = tmp_path / "secret"
    (secret / "videos").mkdir(parents=True)
    for path in ("videos/a.mp4", "train.jsonl"):
        (secret / path).write_text("secret")
        (tmp_path / "in/monday" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in/monday" / path).write_text("own")
    (tmp_path / "in/monday/COMPLETE").touch()
    store = open_store(str(tmp_path / "in"))
    (delivery,) = list_deliveries(store)
    # After it was listed, as somebody would who knows that links are looked for.
    place = tmp_path / "in/monday" / linked
    place.rename(tmp_path / "moved")
    place.symlink_to(secret / linked)
    with pytest.raises(StorageError, match="is a link; store the file itself"):
        download(store, delivery, tmp_path / "here")
    assert not [
        path
        for path in (tmp_path / "here").rglob("*")
        if path.is_file() and path.read_text() == "secret"
    ]


def test_a_pipe_in_a_store_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    store = FolderStore(tmp_path)
    monkeypatch.setattr(store, "exists", lambda key: True)  # It was a file a moment ago.
    with pytest.raises(StorageError, match="is no regular file"):
        store.download("pipe", tmp_path / "copy")


def test_a_run_looks_at_so_many_deliveries(
    plain: Site, parcel: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ingest, "_MOST_DELIVERIES", 2)
    for name in "abc":
        plain.incoming.put(f"{name}/COMPLETE", b"")
    waiting = list_deliveries(plain.incoming)[2].identity
    attempts = plain.ledger.attempts
    attempts.begin([waiting], [waiting], alone=False)
    assert [report.name for report in plain.take().reports] == ["a", "b"]
    assert "3 deliveries, more than a run looks at; 1 wait for the next run, from c on" in (
        caplog.text
    )
    assert attempts.plan([waiting], 2).turns[0].alone  # Its attempt is still counted.
    assert [report.name for report in plain.take().reports] == ["c"]


# --- this machine ---


def test_a_disk_that_is_full_is_not_the_senders_fault(
    plain: Site, parcel: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 8: it waits and keeps no room, the others are taken, and next time it is, too."""
    for name, vid in (("a-large", "new-train-0000"), ("b-good", "new-train-0001")):
        sent = parcel(name)
        sent.keep(vid)
        plain.send(name, sent)
    # It refers to a video of the first, which is not there now.
    late = parcel("c-late")
    late.keep("new-train-0000")
    late.change(
        "train.jsonl", lambda rows: [row | {"query": f"{row['query']} again"} for row in rows]
    )
    for path in (late.folder / "videos").iterdir():
        path.unlink()
    late.change("train.jsonl", lambda rows: [row | {"qid": f"{row['qid']}-late"} for row in rows])
    plain.send("c-late", late)
    download, here = plain.incoming.download, []

    def full(key: str, path: Path, **limits: int) -> None:
        (folder,) = [one for one in path.parents if one.name == "incoming"]
        here.append([one.name for one in folder.iterdir()])
        with files_of_at_most(1000 if key.startswith("a-large/videos") else 1 << 40):
            download(key, path, **limits)

    with monkeypatch.context() as patch:
        patch.setattr(plain.incoming, "download", full)
        first = plain.take()
    assert [report.name for report in first.taken] == ["b-good"]
    waiting = {one.name: one.reasons for one in first.reports if one.state == "waiting"}
    assert waiting["a-large"] == ["not taken, because of this machine: file too large"]
    assert waiting["c-late"][-1] == "so without what waits: a-large"
    assert plain.ledger.entries() == []
    assert here[0] == ["a-large"]
    assert here[-1] == ["c-late"]
    assert first.branch is not None
    again = plain.take(first.branch)
    assert [report.name for report in again.taken] == ["a-large", "c-late"]


def test_room_is_asked_for_before_the_download(
    plain: Site, parcel: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 8: a delivery that fills the disk would leave no room to keep the others."""
    sent = parcel("monday")
    sent.keep("new-train-0000")
    plain.send("monday", sent)
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(1000))
    monkeypatch.setattr(
        plain.incoming, "download", lambda *_, **__: pytest.fail("it was downloaded")
    )
    (report,) = plain.take().reports
    assert report.state == "waiting"
    assert report.reasons[0].startswith("not taken, because of this machine: less than 0.0")
    assert report.reasons[0].endswith("GB free on its disk")


def test_a_file_that_grows_after_the_listing_is_not_written(tmp_path: Path) -> None:
    """It was copied as it was then: a terabyte of a hole filled the disk."""
    (tmp_path / "in/monday/videos").mkdir(parents=True)
    for path in ("train.jsonl", "videos/a.mp4"):
        (tmp_path / "in/monday" / path).write_text("first")
    store = open_store(str(tmp_path / "in"))
    (delivery,) = list_deliveries(store)
    os.truncate(tmp_path / "in/monday/videos/a.mp4", 1 << 40)
    with pytest.raises(StorageError, match=f"has {1 << 40} bytes, more than the 5 before"):
        download(store, delivery, tmp_path / "here")
    written = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert written == [tmp_path / "here/train.jsonl"]


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_name_that_this_disk_cannot_hold(
    plain: Site, parcel: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 8: file systems with shorter names exist, e.g. 143 bytes on encrypted ones."""
    sent = parcel("monday")
    sent.keep("new-train-0000")
    plain.send("monday", sent)

    def short(key: str, path: Path, **_: int) -> None:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))

    monkeypatch.setattr(plain.incoming, "download", short)
    plain.take()
    (entry,) = plain.ledger.entries()
    assert entry.reasons == ["a name in it is too long for the file system of the retraining"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(plain: Site, parcel: Make) -> None:
    """Finding 8: it waits until it may, and the others are taken."""
    for name, vid in (("a-closed", "new-train-0000"), ("b-good", "new-train-0001")):
        sent = parcel(name)
        sent.keep(vid)
        plain.send(name, sent)
    (Path(plain.incoming.url) / "a-closed/train.jsonl").chmod(0)
    ingested = plain.take()
    assert [report.name for report in ingested.taken] == ["b-good"]
    (report,) = [one for one in ingested.reports if one.state == "waiting"]
    assert "Permission denied" in report.reasons[0]


def test_a_table_that_cannot_be_written_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 8: of two tables neither has the rows of a delivery that is not taken."""
    dataset = object.__new__(dvc_dataset.DvcDataset)
    dataset.folder = tmp_path / "own"
    dataset.folder.mkdir()
    for name in ("train.jsonl", "val.jsonl"):
        (dataset.folder / name).write_bytes(b"old\n")
    rows = {"train.jsonl": [b"new"], "val.jsonl": [b"x" * 5000]}
    with files_of_at_most(1000), pytest.raises(OSError, match="file too large"):
        dataset.append(rows, [])
    assert {path.name: path.read_bytes() for path in dataset.folder.iterdir()} == {
        "train.jsonl": b"old\n",
        "val.jsonl": b"old\n",
    }
    dataset.append(rows, [])
    assert (dataset.folder / "train.jsonl").read_bytes() == b"old\nnew\n"


# --- what it writes ---


def test_half_a_character_costs_its_row(tmp_path: Path, config: Config) -> None:
    """Finding 7: it was taken, and no pipeline could write it down."""
    write_rows(tmp_path / "train.jsonl", [row(query="a \ud800 dog"), row(qid="b\udfff")])
    found = read(tmp_path, config)
    assert [one.line for one in found.bad] == [1, 2]
    assert all("half of a surrogate pair" in one.rule for one in found.bad)


@pytest.mark.parametrize("end", ["", "\n", "\r"])
def test_a_line_without_end_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Finding 15: a line of a gigabyte was read into memory."""
    monkeypatch.setattr(lines, "_LONGEST", 1000)
    path = tmp_path / "train.jsonl"
    path.write_text(f"short\n{'x' * 999}{end}")
    assert len(list(byte_lines(path))) == 2
    path.write_text(f"short\n{'x' * 10_000}{end}")
    with pytest.raises(FileFormatError, match="a line has more than 0 MiB"):
        list(byte_lines(path))


@pytest.mark.parametrize("size", [5, 6, 7, 8, 1000])
def test_lines_in_pieces_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Finding 15: wherever the pieces end that are read at once."""
    monkeypatch.setattr(lines, "_LONGEST", size)
    path = tmp_path / "a.txt"
    for text in ("a\n\nb\r\nc\rd\r\r\ne", "\n", "", "a", "a\r", "\r\n\r\n", "a\u2028b\n"):
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert list(byte_lines(path)) == text.encode().splitlines()


def test_a_table_of_many_lines_is_refused(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 15: two bytes of a bad line take hundreds in memory."""
    monkeypatch.setattr(row_checks, "_MOST_LINES", 3)
    (tmp_path / "captions.jsonl").write_text("{}\n" * 4)
    with pytest.raises(FileFormatError, match="has more than 3 lines; send it in parts"):
        read(tmp_path, config)


def test_names_are_suggested_for_a_few_rows_only(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row about an unknown video was compared with all names: a million took days."""
    asked = []
    monkeypatch.setattr(errors, "nearest_names", lambda name, known: asked.append(name) or ["lake"])
    write_rows(tmp_path / "train.jsonl", [row(qid=n, vid=f"lake-{n // 2}") for n in range(300)])
    bad = read(tmp_path, config).bad
    assert len(bad) == 300
    assert asked == [f"lake-{n}" for n in range(50)]
    assert [one.rule.endswith("did you mean 'lake'?") for one in bad] == [True] * 100 + [
        False
    ] * 200


def test_what_the_metrics_refuse_is_a_bad_row(tmp_path: Path, config: Config) -> None:
    """It passed each check, and then ended each training when the model was validated."""
    ratings = {"saliency_scores": [[1, 2, 3], [2, 2, 2]]}
    last = {"relevant_windows": [[18.0, 21.0]], "relevant_clip_ids": [9, 10]}
    rows = [
        row(qid=1, **ratings),
        row(qid=2, **ratings, duration=21.0, **last),
        row(qid=3, saliency_scores=[[1], [2]]),
        row(qid=4, relevant_clip_ids=[]),
    ]
    (tmp_path / "videos").mkdir()
    reference = Reference(object.__new__(Profile), videos={"v": ("v.mp4", "0")})
    reference.scored, _ = parse_annotation(row(qid=0, **ratings), 2.0)
    videos = DeliveredVideos(tmp_path / "videos", reference, 2.0, [])
    for number, one in enumerate(rows):
        one["query"] = f"dog {number}"
    write_rows(tmp_path / "val.jsonl", rows)
    found = check_records(tmp_path, reference, videos, config)
    assert [one.id for one in found.good] == [1, 4]
    rules = {one.qid: one.rule for one in found.bad}
    assert "is beyond the video's 10 clips" in rules[2]
    assert "must be a list of 3 ratings" in rules[3]


def test_what_a_sender_writes_is_cut(tmp_path: Path, config: Config) -> None:
    """Finding 20: an id of 3 MB went into the report, the outcome and the state's message."""
    long = "q" * 3_000_000
    rows = [row(qid=long, duration=-1), row(qid="b", vid=long), row(qid=int("9" * 4000), vid="w")]
    write_rows(tmp_path / "train.jsonl", rows)
    (tmp_path / "captions.jsonl").write_text("")
    bad = read(tmp_path, config).bad
    assert len(bad) == 3
    report = DeliveryReport("monday", "1" * 64, "quarantined", [str(bad[0])], bad=bad)
    assert len(report.reasons[0]) < 250
    assert len(report.markdown()) < 2000

    ingestion = object.__new__(_Ingestion)
    ingestion._ledger = Ledger(open_store(str(tmp_path / "ledger")), "moments")
    ingestion._result = IngestResult()
    report.reasons.append(long)
    ingestion._conclude(report)
    (entry,) = ingestion._ledger.entries()
    assert sum(map(len, entry.reasons)) < 1500


def test_limits_may_be_absent_or_others(config: Config) -> None:
    """The limits of files that were written before there were any."""
    raw = {key: config.retrain.model_dump()[key] for key in ("max_bad_share", "drift")}
    assert RetrainSettings.model_validate(raw) == config.retrain
    assert RetrainSettings.model_validate(raw | {"max_gb": 0.5}).max_gb == 0.5


def test_the_digest_of_a_delivery_stays(tmp_path: Path) -> None:
    """Outcomes of earlier versions are found by it."""
    path = tmp_path / "monday/train.jsonl"
    path.parent.mkdir()
    path.write_text("{}\n")
    (path.parent / "COMPLETE").touch()
    state = path.stat()
    (found,) = list_deliveries(open_store(str(tmp_path)))
    assert found.digest == digest_of({"train.jsonl": f"{state.st_size}-{state.st_mtime_ns}"})
