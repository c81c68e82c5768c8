"""Deliveries come in, whole or not at all; the data of the repository grow as by `dvc add`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from mrmodel.errors import ConfigError, DeliveryError
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.dvc_graph import StageGraph
from mrmodel.presets import overlay
from mrmodel.registry.champion import PointerSnapshot
from mrmodel.registry.decision import pointer_key
from mrmodel.retrain import ingest as ingest_module
from mrmodel.retrain.deliveries import Delivery
from mrmodel.retrain.ingest import IngestResult
from mrmodel.retrain.outcomes import LedgerEntry
from mrmodel.retrain.report import DeliveryReport, DeliveryState
from tests.project import Project
from tests.registry.trial import promotion_of
from tests.retrain.conftest import FOLDER, MODEL, TABLES, Parcel, Site
from tests.retrain.killed import kill_oneself

Make = Callable[..., Parcel]


@pytest.fixture
def small(parcel: Make) -> Make:
    """Makes a good delivery of one video."""

    def make() -> Parcel:
        sent = parcel()
        sent.keep("new-train-0000")
        return sent

    return make


def reports_in(ingested: IngestResult, state: DeliveryState) -> list[DeliveryReport]:
    """Deliveries with this verdict."""
    return [report for report in ingested.reports if report.state == state]


def md5_of(text: str) -> str:
    return str(yaml.safe_load(text)["outs"][0]["md5"])


def added_by_hand(project: Project, parcels: list[Path], target: Path) -> str:
    """Hash of the whole folder with the deliveries, by a plain `dvc add`."""
    copied = project.copy(target)
    folder = copied.folder / FOLDER
    for parcel in parcels:
        for path in (parcel / "videos").iterdir():
            shutil.copyfile(path, folder / "videos" / path.name)
        for table in TABLES:
            content = (folder / table).read_bytes() + (parcel / table).read_bytes()
            (folder / table).unlink()
            (folder / table).write_bytes(content)
    copied.run("dvc", "add", FOLDER)
    return md5_of((copied.folder / f"{FOLDER}.dvc").read_text())


@pytest.mark.usefixtures("checks_apart")
def test_a_good_delivery_is_taken(site: Site, parcel: Make, tmp_path: Path) -> None:
    sent = parcel()
    site.send("monday", sent)
    ingested = site.take()
    assert [report.name for report in ingested.taken] == ["monday"]
    (report,) = ingested.reports
    assert report.rows == {table: len(sent.rows(table)) for table in TABLES}
    assert min(report.rows.values()) > 5
    assert len(report.videos) == 6
    assert report.bad == []
    assert ingested.branch is not None
    taken = site.show(ingested.branch, f"{FOLDER}.dvc")
    by_hand = added_by_hand(site.project, [sent.folder], tmp_path / "by_hand")
    assert md5_of(taken) == by_hand
    (listed,) = json.loads(site.show(ingested.branch, f"{FOLDER}.deliveries.json"))
    assert listed["name"] == "monday"
    assert listed["rows"] == report.rows
    changed = site.project.git("diff", "--name-only", "HEAD", ingested.branch).split()
    assert changed == [f"{FOLDER}.deliveries.json", f"{FOLDER}.dvc"]
    with fresh_clone(site.environment, ingested.branch, {}) as clone:
        videos = clone / FOLDER / "videos"
        assert not videos.exists(), "no old video was needed"
        remote = None if site.environment.remote is None else "workers"
        verdicts = {name: StageGraph(clone, remote).status(name) for name in ("corpus", "report")}
    assert verdicts["corpus"].reason == f"{FOLDER} changed"


def test_the_new_data_can_be_pulled(site: Site, parcel: Make, rendered: Path) -> None:
    site.send("monday", parcel())
    branch = site.take().branch
    assert branch is not None
    with fresh_clone(site.environment, branch, {}) as clone:
        repo, target = Repo(str(clone)), str(clone / f"{FOLDER}.dvc")
        if site.environment.remote is None:
            repo.checkout([target])
        else:
            repo.pull([target])
        videos = clone / FOLDER / "videos"
        assert len(list(videos.iterdir())) == 19 + 6
        for path in (rendered / "videos").glob("new-train-*"):
            assert (videos / path.name).read_bytes() == path.read_bytes()


def test_the_same_listing_twice_is_no_work(site: Site, small: Make) -> None:
    site.send("monday", small())
    first = site.take()
    assert first.branch is not None
    before = site.branches()
    merged = site.take(first.branch)
    assert (merged.reports, merged.branch) == ([], None)
    assert site.branches() == before

    # Not merged, but judged: the model that was trained on it was no better.
    (report,) = first.taken
    refused = LedgerEntry(
        delivery="monday", digest=report.digest, outcome="refused", reasons=["worse"], version=2
    )
    site.ledger.note(refused)
    assert site.take().reports == []


def test_promoted_data_must_be_merged_first(plain: Site, small: Make) -> None:
    plain.send("monday", small())
    ingested = plain.take()
    promoted = LedgerEntry(
        delivery="monday",
        digest=ingested.taken[0].digest,
        outcome="promoted",
        reasons=[],
        branch=ingested.branch,
        version=2,
    )
    plain.ledger.note(promoted)
    with pytest.raises(DeliveryError, match=rf"{ingested.branch} was promoted but is not merged"):
        plain.take()
    assert ingested.branch is not None
    assert plain.take(ingested.branch).reports == []


def test_a_branch_that_a_killed_promotion_left_behind_moves(
    plain: Site, small: Make, tmp_path: Path
) -> None:
    """It died between the outcome and the branch; data of withdrawn models are not brought back."""
    copied = plain.project.copy(tmp_path / "hub")
    copied.git("config", "receive.denyCurrentBranch", "ignore")
    site = replace(
        plain, project=copied, environment=replace(plain.environment, git=str(copied.folder))
    )
    start = copied.git("rev-parse", "HEAD")
    site.send("monday", small())
    ingested = site.take()
    (report,) = ingested.taken
    site.ledger.note(
        LedgerEntry(
            delivery="monday",
            digest=report.digest,
            outcome="promoted",
            reasons=[],
            branch=ingested.branch,
            version=2,
        )
    )
    assert site.take().reports == []
    assert copied.git("rev-parse", "HEAD") == copied.git("rev-parse", str(ingested.branch))

    copied.git("update-ref", "HEAD", start.strip())
    seen = PointerSnapshot(promotion_of(1, PointerSnapshot(None, None)), None)
    withdrawn = promotion_of(1, seen).model_copy(update={"withdrawn": [2]})
    site.store.put(pointer_key(MODEL), withdrawn.model_dump_json().encode())
    assert site.take().reports == []
    assert copied.git("rev-parse", "HEAD") == start


def test_an_incomplete_delivery_waits(site: Site, small: Make) -> None:
    site.send("monday", small(), marked=False)
    ingested = site.take()
    assert [(one.name, one.state) for one in ingested.reports] == [("monday", "incomplete")]
    assert "not complete yet" in ingested.reports[0].reasons[0]
    assert (ingested.branch, site.ledger.entries()) == (None, [])
    site.incoming.put("monday/COMPLETE", b"")
    assert [report.name for report in site.take().taken] == ["monday"]


def test_one_bad_delivery_does_not_stop_the_others(site: Site, parcel: Make) -> None:
    """Of two that overlap the first by name is taken, and the other brings what is left."""
    for name, vid in (("a-good", "new-train-0000"), ("d-more", "new-train-0001")):
        good = parcel(name)
        good.keep("new-train-0000", vid)
        site.send(name, good)
    broken = parcel("b-broken")
    broken.keep("new-train-0002")
    (broken.folder / "videos/new-train-0002.mp4").write_bytes(b"no video at all")
    site.send("b-broken", broken)
    site.incoming.put("c-strange/notes.txt", b"hello")
    site.incoming.put("c-strange/COMPLETE", b"")
    ingested = site.take()
    assert [report.name for report in ingested.taken] == ["a-good", "d-more"]
    assert [report.name for report in reports_in(ingested, "quarantined")] == [
        "b-broken",
        "c-strange",
    ]
    assert ingested.taken[0].videos == ["new-train-0000.mp4"]
    assert ingested.taken[1].videos == ["new-train-0001.mp4"]
    assert ingested.taken[1].known == ingested.taken[0].rows["train.jsonl"]
    reasons = {entry.delivery: entry.reasons[0] for entry in site.ledger.entries()}
    assert "its video new-train-0002.mp4 cannot be read" in reasons["b-broken"]
    assert reasons["c-strange"].startswith("brings no new row")
    assert ingested.branch is not None
    listed = json.loads(site.show(ingested.branch, f"{FOLDER}.deliveries.json"))
    assert [one["name"] for one in listed] == ["a-good", "d-more"]
    assert site.incoming.exists("b-broken/videos/new-train-0002.mp4"), "it is the sender's"


def test_a_repetition_waits_until_the_first_is_decided(plain: Site, parcel: Make) -> None:
    plain.send("first", parcel("first"))
    plain.send("second", parcel("second"))
    ingested = plain.take()
    assert [report.name for report in ingested.taken] == ["first"]
    (left,) = reports_in(ingested, "waiting")
    assert left.reasons[0].startswith("brings no new row")
    assert left.reasons[1] == "so beside what was taken before it: first"
    assert plain.ledger.entries() == []
    assert ingested.branch is not None
    assert [report.name for report in reports_in(plain.take(ingested.branch), "quarantined")] == [
        "second"
    ]


def test_a_corrected_delivery_is_taken(plain: Site, small: Make) -> None:
    sent = small()
    right = (sent.folder / "train.jsonl").read_bytes()
    sent.change("train.jsonl", lambda rows: [row | {"duration": -1} for row in rows])
    plain.send("monday", sent)
    (report,) = reports_in(plain.take(), "quarantined")
    assert report.reasons[0].startswith("bad rows: ")
    assert plain.take().reports == [], "it was judged"
    (sent.folder / "train.jsonl").write_bytes(right)
    plain.send("monday", sent)
    ingested = plain.take()
    assert [one.name for one in ingested.taken] == ["monday"]
    assert ingested.taken[0].digest != report.digest


def test_a_second_delivery_goes_behind_the_first(plain: Site, parcel: Make) -> None:
    first, second = parcel("first"), parcel("second")
    first.keep("new-train-0000")
    second.keep("new-train-0001")
    plain.send("first", first)
    rev = plain.take().branch
    assert rev is not None
    plain.send("second", second)
    ingested = plain.take(rev)
    assert [report.name for report in ingested.reports] == ["second"]
    assert ingested.branch is not None
    listed = json.loads(plain.show(ingested.branch, f"{FOLDER}.deliveries.json"))
    assert [one["name"] for one in listed] == ["first", "second"]


def test_a_delivery_that_changes_while_it_is_read_waits(
    plain: Site, small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.send("monday", small())
    download = plain.incoming.download

    def and_change(key: str, path: Path, **limits: int) -> None:
        download(key, path, **limits)
        plain.incoming.put("monday/train.jsonl", b"")

    monkeypatch.setattr(plain.incoming, "download", and_change)
    ingested = plain.take()
    assert reports_in(ingested, "waiting")[0].reasons == ["it changed while it was read"]
    assert plain.ledger.entries() == []


@pytest.mark.usefixtures("checks_apart")
def test_a_check_that_takes_its_process_with_it_stops_nobody(
    plain: Site, small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a video can that finds a mistake in a decoder."""
    plain.send("monday", small())
    monkeypatch.setattr(ingest_module, "_check", kill_oneself)
    (report,) = reports_in(plain.take(), "quarantined")
    assert report.reasons[0].startswith("the process that checks it dies")


def test_a_defect_of_ours_leaves_the_delivery_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(ingest_module, "check_folder", fail)
    delivery, nothing = Delivery("monday", "1" * 64, (), True), Path()
    found = ingest_module._check(nothing, delivery, None, None)  # type: ignore[arg-type]
    assert found.report.state == "waiting"
    assert "ValueError('a defect')" in found.report.reasons[0]


@pytest.fixture
def edited(plain: Site, tmp_path: Path) -> Callable[..., Site]:
    """A site whose repository is a copy in which something is missing or different."""

    def edit(*removed: str, **corpus: str) -> Site:
        copied = plain.project.copy(tmp_path / "copy")
        for name in removed:
            copied.git("rm", "-q", name)
        text = (copied.folder / "params.yaml").read_text()
        (copied.folder / "params.yaml").write_text(overlay(text, {"corpus": corpus}))
        copied.git("add", "-A")
        copied.git("commit", "-q", "-m", "edited")
        environment = replace(plain.environment, git=str(copied.folder))
        return Site(copied, environment, plain.incoming, plain.store)

    return edit


def test_a_repository_that_is_not_ready_says_what_to_do(
    edited: Callable[..., Site], parcel: Make
) -> None:
    site = edited(f"{FOLDER}.dvc")
    site.send("monday", parcel())
    with pytest.raises(DeliveryError, match=rf"{FOLDER}\.dvc is missing: `dvc add {FOLDER}`"):
        site.take()


def test_a_rendered_corpus_takes_no_deliveries(edited: Callable[..., Site], parcel: Make) -> None:
    site = edited(source="sample")
    site.send("monday", parcel())
    with pytest.raises(ConfigError, match="deliveries go into a folder of your own"):
        site.take()


def test_without_a_profile_there_is_nothing_to_compare_with(
    edited: Callable[..., Site], parcel: Make
) -> None:
    site = edited("dvc.lock")
    site.send("monday", parcel())
    with pytest.raises(DeliveryError, match="run `dvc repro profile`"):
        site.take()


def test_the_sender_can_see_the_verdict_beforehand(plain: Site, parcel: Make) -> None:
    sent = parcel("monday")
    told = plain.project.invoke("delivery", "check", str(sent.folder))
    assert "### Delivery `monday`: taken" in told
    (sent.folder / "test.jsonl").write_text("")
    told = plain.project.run("mrmodel", "delivery", "check", str(sent.folder), code=2)
    assert "### Delivery `monday`: quarantined" in told
    assert "the test set is frozen" in told
