"""What follows from a decision: outcomes of deliveries, and a branch that moves or does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrmodel.errors import ConfigError
from mrmodel.orchestrate.checkout import git
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.run_branch import fast_forward
from mrmodel.registry.decision import Decision, Gate, Kind
from mrmodel.retrain.finish import finish, open_incoming, summarize_ingestion
from mrmodel.retrain.ingest import IngestResult
from mrmodel.retrain.outcomes import Ledger
from mrmodel.retrain.report import DeliveryReport
from mrmodel.storage import open_store

RUN = "runs/1"
GUIDES = Path(__file__).resolve().parents[2] / "docs/howto"


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A bare repository with a branch ``main``, and a run branch that is one commit ahead."""
    work, bare = tmp_path / "work", tmp_path / "hub.git"
    work.mkdir()
    git(work, "init", "--quiet", "--initial-branch", "main")
    (work / ".dvc").mkdir()
    (work / ".dvc/config").touch()
    git(work, "add", "-A")
    git(work, "commit", "--quiet", "--message", "start")
    git(work, "clone", "--quiet", "--bare", str(work), str(bare))
    git(work, "remote", "add", "origin", str(bare))
    git(work, "checkout", "--quiet", "-b", RUN)
    git(work, "commit", "--quiet", "--allow-empty", "--message", "results")
    git(work, "push", "--quiet", "origin", RUN)
    return bare


@pytest.fixture
def environment(hub: Path, tmp_path: Path) -> RuntimeEnvironment:
    return RuntimeEnvironment.from_environment(
        {
            "MRMODEL_GIT_URL": str(hub),
            "MRMODEL_WORK_DIR": str(tmp_path / "own"),
            "MRMODEL_DVC_REMOTE": str(tmp_path / "remote"),
        }
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(open_store(str(tmp_path / "registry")), "moments")


def tip(hub: Path, branch: str) -> str:
    return git(hub, "rev-parse", branch)


def decide(kind: Kind) -> Decision:
    gain = Gate(name="better", passed=kind != "refuse", detail="MR-full-mAP +1.00")
    return Decision(
        id="1",
        at="now",
        kind=kind,
        model="moments",
        version=3,
        before=2,
        test_set="0" * 64,
        gates=[gain],
        actor="test",
    )


def ingested() -> IngestResult:
    bad = DeliveryReport("bad", "2" * 64, "quarantined", ["limit"])
    return IngestResult([bad, DeliveryReport("good", "1" * 64, "taken")], RUN)


def outcomes(ledger: Ledger) -> list[tuple[str, str, int | None]]:
    return [(one.delivery, one.outcome, one.version) for one in ledger.entries()]


@pytest.mark.parametrize("rev", ["main", "HEAD"])
def test_after_a_promotion_the_branch_moves(
    rev: str, hub: Path, environment: RuntimeEnvironment, ledger: Ledger
) -> None:
    summary = finish(environment, rev, ledger, ingested(), RUN, decide("promote"))
    assert tip(hub, "main") == tip(hub, RUN)
    assert outcomes(ledger) == [("good", "promoted", 3)]
    assert summary.name == "Promoted"
    assert summary.text.splitlines() == [
        "moments version 3 is champion (better: MR-full-mAP +1.00)",
        f"{rev} has moved",
        "delivery bad: quarantined (limit)",
        "delivery good: taken",
    ]


@pytest.mark.parametrize("page", ["deliver_data", "retrain_on_schedule"])
def test_the_guides_say_so(page: str) -> None:
    """Both guides describe what `test_after_a_promotion_the_branch_moves` proves."""
    text = (GUIDES / f"{page}.md").read_text(encoding="utf-8")
    assert "After a promotion the branch moves to the new data" in text


def test_after_a_refusal_it_stays(
    hub: Path, environment: RuntimeEnvironment, ledger: Ledger
) -> None:
    before = tip(hub, "main")
    summary = finish(environment, "main", ledger, ingested(), RUN, decide("refuse"))
    assert tip(hub, "main") == before
    (entry,) = ledger.entries()
    assert (entry.outcome, entry.branch) == ("refused", RUN)
    assert entry.reasons == ["better: MR-full-mAP +1.00"]
    assert (summary.name, "is refused (better:" in summary.text) == ("Refused", True)


def test_a_conflict_is_no_outcome(
    hub: Path, environment: RuntimeEnvironment, ledger: Ledger
) -> None:
    summary = finish(environment, "main", ledger, ingested(), RUN, decide("conflict"))
    assert ledger.entries() == []
    assert summary.name == "Conflict"


def test_a_branch_that_moved_meanwhile_is_left_to_people(
    hub: Path, environment: RuntimeEnvironment, ledger: Ledger, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    git(work, "checkout", "--quiet", "main")
    git(work, "commit", "--quiet", "--allow-empty", "--message", "somebody was faster")
    git(work, "push", "--quiet", "origin", "main")
    theirs = tip(hub, "main")
    summary = finish(environment, "main", ledger, ingested(), RUN, decide("promote"))
    assert tip(hub, "main") == theirs
    assert f"merge {RUN} before the next retraining" in summary.text
    assert outcomes(ledger) == [("good", "promoted", 3)]
    assert fast_forward(environment, theirs, RUN) == f"{theirs} is no branch"


def test_settling_twice_changes_nothing(
    hub: Path, environment: RuntimeEnvironment, ledger: Ledger
) -> None:
    first = finish(environment, "main", ledger, ingested(), RUN, decide("promote"))
    entries = ledger.entries()
    assert finish(environment, "main", ledger, ingested(), RUN, decide("promote")) == first
    assert ledger.entries() == entries


def test_what_serves_already_by_a_rollback_is_promoted(
    hub: Path, environment: RuntimeEnvironment, ledger: Ledger
) -> None:
    decision = decide("rollback").model_copy(update={"reason": "the other one was worse"})
    summary = finish(environment, "main", ledger, ingested(), RUN, decision)
    assert outcomes(ledger) == [("good", "promoted", 3)]
    assert summary.name == "Promoted"
    assert "champion already, by a rollback (the other one was worse)" in summary.text


def test_nothing_taken_says_why() -> None:
    late = DeliveryReport("late", "3" * 64, "incomplete", ["not complete yet"])
    waiting = DeliveryReport("odd", "4" * 64, "waiting", ["it cannot be read"])
    assert summarize_ingestion([]).text == "no new delivery"
    assert summarize_ingestion([late]).name == "Unchanged"
    assert summarize_ingestion([late, waiting]).name == "Waiting"
    found = summarize_ingestion([late, ingested().reports[0]])
    assert found.name == "Quarantined"
    assert found.text.splitlines() == [
        "delivery late: incomplete (not complete yet)",
        "delivery bad: quarantined (limit)",
    ]


def test_the_incoming_store_must_be_named(
    environment: RuntimeEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MRMODEL_INCOMING", raising=False)
    with pytest.raises(ConfigError, match="MRMODEL_INCOMING"):
        open_incoming(environment)
