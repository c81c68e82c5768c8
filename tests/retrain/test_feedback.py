"""Feedback about hits is kept, and reaches the training set through a delivery."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from dvc.repo import Repo
from pydantic import ValidationError

from mrmodel.cli.main import cli
from mrmodel.errors import DataError, OutputError, StorageError
from mrmodel.files import sha256_of
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.retrain.deliveries import list_deliveries
from mrmodel.server.feedback import JOURNAL, FeedbackEntry, Journal, Verdict
from mrmodel.server.feedback_delivery import FeedbackDelivery, deliver
from mrmodel.storage import FolderStore
from tests.retrain.conftest import FOLDER, Site
from tests.synthetic.conftest import read_rows

QUERY = "a red kite over the hill"
HIT: dict[str, Any] = {"query": QUERY, "verdict": "accept", "start_s": 2.0, "end_s": 8.0}
CORRECTED = {"verdict": "correct", "corrected_start_s": 4.0, "corrected_end_s": 11.5}

Say = Callable[..., FeedbackEntry]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "library" / JOURNAL)


@pytest.fixture
def say(journal: Journal, rendered: Path) -> Say:
    """Appends a verdict about a new video of 20 s, or about another file."""

    def saying(path: Path | None = None, name: str = "", **change: Any) -> FeedbackEntry:
        path = path or rendered / "videos/new-train-0000.mp4"
        sha256 = sha256_of(path) if path.exists() else "0" * 64
        verdict = Verdict(**(HIT | change))
        entry = FeedbackEntry.of(verdict, path, name or path.name, sha256, 20.0, "sg_detr")
        journal.append(entry)
        return entry

    return saying


def delivered(journal: Journal, site: Site) -> FeedbackDelivery:
    return deliver(journal, site.incoming, site.environment)


def rows_of(site: Site, name: str | None) -> list[dict[str, Any]]:
    table = site.incoming.get(f"{name}/train.jsonl")
    assert table is not None
    return [json.loads(line) for line in table.content.splitlines()]


@pytest.mark.usefixtures("checks_here")
def test_a_correction_reaches_the_training_set(
    journal: Journal, say: Say, plain: Site, rendered: Path
) -> None:
    say(**CORRECTED)
    say(start_s=14.0, end_s=18.0)
    say(start_s=9.0, end_s=13.0)
    say(verdict="reject", start_s=0.0, end_s=1.0)
    done = delivered(journal, plain)
    assert (done.rows, done.left_out, done.waiting) == (1, [], [])
    (video,) = done.videos
    assert video.startswith("new-train-0000-")

    ingested = plain.take()
    assert [report.name for report in ingested.taken] == [done.name]
    assert ingested.branch is not None
    with fresh_clone(plain.environment, ingested.branch, {}) as clone:
        Repo(str(clone)).checkout([str(clone / f"{FOLDER}.dvc")])
        row = read_rows(clone / FOLDER / "train.jsonl")[-1]
        sent = (clone / FOLDER / "videos" / video).read_bytes()
    assert (row["query"], row["vid"]) == (QUERY, Path(video).stem)
    # The window that was found is gone, the others are as they were accepted.
    assert row["relevant_windows"] == [[4.0, 13.0], [14.0, 18.0]]
    assert sent == (rendered / "videos/new-train-0000.mp4").read_bytes()

    assert delivered(journal, plain).name is None
    state = journal.read()
    assert [len(state.entries), len(state.deliverable), len(state.rejected)] == [4, 0, 1]


def test_test_videos_are_left_out_and_named(
    journal: Journal, say: Say, plain: Site, rendered: Path, tmp_path: Path
) -> None:
    folder = plain.project.folder / FOLDER / "videos"
    copied = Path(shutil.copyfile(folder / "test-0001.mp4", tmp_path / "holiday.mp4"))
    other = rendered / "videos/new-train-0001.mp4"
    say(folder / "test-0000.mp4")
    say(copied)
    say(other, name="test-0002.mp4")
    say(folder / "train-0003.mp4", query="a known video")
    done = delivered(journal, plain)
    assert [str(one).partition(": ")[2] for one in done.left_out] == [
        "'test-0000' is a video of the test split, on which models are compared",
        "its video is test-0001.mp4 of the test split, on which models are compared",
        "'test-0002' is a video of the test split, on which models are compared",
    ]
    (row,) = rows_of(plain, done.name)
    assert (row["vid"], row["query"]) == ("train-0003", "a known video")
    assert done.videos == [], "the data have its video"
    keys = plain.incoming.keys()
    assert keys == [f"{done.name}/COMPLETE", f"{done.name}/train.jsonl"]
    again = delivered(journal, plain)
    assert (again.name, again.left_out) == (None, [])


def test_the_last_verdict_about_a_hit_counts(journal: Journal, say: Say) -> None:
    say()
    say(verdict="reject")
    assert journal.read().deliverable == []
    last = say(query=f" {QUERY.upper()} ", **CORRECTED)
    state = journal.read()
    assert (state.deliverable, state.rejected) == ([last], [])


def test_what_cannot_be_sent_now_waits(
    journal: Journal, say: Say, plain: Site, rendered: Path, tmp_path: Path
) -> None:
    video = Path(shutil.copyfile(rendered / "videos/new-train-0000.mp4", tmp_path / "a.mp4"))
    say(video)
    video.rename(tmp_path / "b.mp4")
    say(tmp_path / "b.mp4", name="..", query="one more")
    (tmp_path / "b.mp4").write_bytes(b"another")
    say(rendered / "videos/new-val-0000.mp4")
    done = delivered(journal, plain)
    # The same content: what is known of one entry's file holds for both.
    assert [one.reason for one in done.waiting] == ["its file: No such file or directory"] * 2
    assert done.rows == 1
    video.write_bytes((rendered / "videos/new-train-0000.mp4").read_bytes())
    again = delivered(journal, plain)
    assert (again.rows, again.waiting) == (2, [])
    assert again.name != done.name


class _BrokenStore(FolderStore):
    """Fails at the marker."""

    def put(self, key: str, content: bytes, **_: Any) -> str:
        raise StorageError(self.url, "is gone", key=key)


def test_a_killed_delivery_is_completed_under_its_name(
    journal: Journal, say: Say, plain: Site
) -> None:
    say()
    with pytest.raises(StorageError):
        deliver(journal, _BrokenStore(Path(plain.incoming.url)), plain.environment)
    begun = journal.read().unfinished
    assert begun is not None
    assert [(one.name, one.complete) for one in list_deliveries(plain.incoming)] == [
        (begun.name, False)
    ]
    say(start_s=15.0, end_s=16.0)
    done = delivered(journal, plain)
    assert done.name == begun.name
    assert [row["relevant_windows"] for row in rows_of(plain, done.name)] == [[[2.0, 8.0]]]
    assert [one.complete for one in list_deliveries(plain.incoming)] == [True]
    later = delivered(journal, plain)
    assert [row["relevant_windows"] for row in rows_of(plain, later.name)] == [[[15.0, 16.0]]]


def test_the_command_delivers(
    journal: Journal, say: Say, plain: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRMODEL_INCOMING", plain.incoming.url)
    monkeypatch.setenv("MRMODEL_GIT_URL", plain.environment.git)
    say()
    say(verdict="reject", query="nothing of the kind")
    say(plain.project.folder / FOLDER / "videos/test-0000.mp4")
    arguments = ["feedback", "deliver", "--library", str(journal.path.parent)]
    first = CliRunner().invoke(cli, arguments, catch_exceptions=False).output.splitlines()
    assert first[0].startswith(f"left out: test-0000.mp4, '{QUERY}': 'test-0000' is a video of")
    assert first[1].endswith(": 1 rows, 1 new videos")
    assert first[2] == f"1 rejected hits wait in {journal.path}"
    command = [sys.executable, "-m", "mrmodel.cli.main", *arguments]
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert second.stdout.splitlines()[0] == "nothing to deliver"
    assert second.stderr == ""


def test_several_writers_lose_nothing(journal: Journal, say: Say) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: say(start_s=number / 100), range(100)))
    state = journal.read()
    assert {entry.id for entry in made} == set(state.entries)
    assert state.problems == []


def test_a_torn_line_costs_itself_only(journal: Journal, say: Say) -> None:
    first = say()
    with journal.path.open("ab") as file:
        file.write(b'{"entry": {"query": "a re')
    second = say(query="another")
    with journal.path.open("ab") as file:
        file.write(b'{"entry": {"query": "no id"}}\n')
    state = journal.read()
    assert list(state.entries.values()) == [first, second]
    assert [problem.partition("jsonl:")[2][:2] for problem in state.problems] == ["2:", "4:"]


def test_a_full_disk_leaves_the_journal_as_it_was(journal: Journal, say: Say) -> None:
    say()
    before = journal.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        with pytest.raises(OutputError, match=JOURNAL):
            say(query="no room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"query": " "}, "is empty"),
        ({"end_s": 2.0}, "ends after its start"),
        ({"start_s": -1.0}, "greater than or equal to 0"),
        ({"end_s": float("nan")}, "finite"),
        ({"verdict": "correct"}, "go with the verdict 'correct'"),
        ({**CORRECTED, "verdict": "accept"}, "go with the verdict 'correct'"),
        ({**CORRECTED, "corrected_end_s": 4.0}, "ends after its start"),
        ({"verdict": "perhaps"}, "'accept', 'correct' or 'reject'"),
    ],
)
def test_a_verdict_that_is_none_is_refused(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        Verdict(**(HIT | change))


def test_a_window_after_the_end_is_refused(say: Say) -> None:
    with pytest.raises(DataError, match=r"starts at 20 s, the video has 20"):
        say(start_s=20.0, end_s=21.0)
