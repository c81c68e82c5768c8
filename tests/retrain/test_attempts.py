"""Retrainings that fail again and again: counted, tried alone, and ended by a quarantine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mrmodel.errors import ConflictError, DataError, OrchestrationError, StorageError
from mrmodel.retrain.attempts import AttemptLog, Identity, Turn
from mrmodel.retrain.finish import finish
from mrmodel.retrain.ingest import IngestResult
from mrmodel.retrain.outcomes import LedgerEntry
from mrmodel.storage import Store, open_store
from tests.retrain.conftest import Parcel, Site
from tests.retrain.test_finish import decide

A, B, C = ("a", "1" * 64), ("b", "2" * 64), ("c", "3" * 64)
LIMIT = 3


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "registry"))


@pytest.fixture
def log(store: Store) -> AttemptLog:
    return AttemptLog(store, "moments")


def night(log: AttemptLog, *pending: Identity) -> list[Identity]:
    """A retraining whose first turn is trained on, and fails; the deliveries of this turn."""
    turn = log.plan(pending, LIMIT).turns[0]
    log.begin(turn.deliveries, pending, turn.alone)
    log.note_failure(turn.deliveries, "finetune: exited with 2")
    return turn.deliveries


def test_the_one_that_fails_does_not_hold_up_the_others(log: AttemptLog) -> None:
    """Two nights all together, then one after another, in turns with what arrives meanwhile."""
    assert log.plan([], LIMIT).turns == []
    assert night(log, A, B) == [A, B]
    assert night(log, A, B) == [A, B]
    plan = log.plan([A, B, C], LIMIT)
    assert plan.turns == [Turn([A], True), Turn([B], True), Turn([C], False)]
    assert plan.failed == {A, B}
    assert night(log, A, B, C) == [A]
    plan = log.plan([A, B, C], LIMIT)
    assert plan.spent == {A: "3 retrainings with it failed; the last: finetune: exited with 2"}
    assert plan.turns == [Turn([C], False), Turn([B], True)]
    assert night(log, B, C) == [C]
    assert night(log, B, C) == [B]
    assert log.plan([B, C], LIMIT).spent.keys() == {B}


def test_what_ends_is_no_failure(log: AttemptLog) -> None:
    night(log, A)
    for _ in range(5):
        log.begin([A, B], [A, B], False)
        log.withdraw([A, B])
    assert log.plan([A, B], LIMIT).failed == {A}
    log.begin([A, B], [A, B], False)
    log.end([A])
    assert log.plan([A, B], LIMIT).failed == {B}


def test_a_corrected_delivery_begins_anew_and_the_old_one_is_forgotten(
    log: AttemptLog, store: Store
) -> None:
    for _ in range(2):
        night(log, A)
    corrected = ("a", "4" * 64)
    assert night(log, corrected) == [corrected]
    assert log.plan([corrected], LIMIT).turns == [Turn([corrected], False)]
    written = store.get("moments/attempts.json")
    assert written is not None
    assert b"1111" not in written.content


def test_whom_an_error_is_counted_against(log: AttemptLog) -> None:
    def fails_with(error: BaseException) -> set[Identity]:
        log.begin([A], [A], False)
        with pytest.raises(type(error)), log.running([A]):
            raise error
        failed = log.plan([A], LIMIT).failed
        log.end([A])
        return failed

    assert fails_with(ValueError("a defect, perhaps in reading it")) == {A}
    assert fails_with(DataError("holds no annotation")) == {A}
    assert fails_with(StorageError("s3://bucket", "cannot be reached")) == set()
    assert fails_with(OrchestrationError("git cannot be reached")) == set()
    assert fails_with(OSError(28, "No space left on device")) == set()
    assert fails_with(KeyboardInterrupt()) == set()


def killed_in_a_training(url: str) -> None:
    log = AttemptLog(open_store(url), "moments")
    log.begin([A], [A], False)
    with log.running([A]):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_counts(log: AttemptLog, store: Store) -> None:
    for _ in range(LIMIT):
        child = multiprocessing.get_context("fork").Process(
            target=killed_in_a_training, args=(store.url,)
        )
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    why = log.plan([A], LIMIT).spent[A]
    assert why == "3 retrainings with it failed; the last: the process was killed"


def test_a_reason_is_short(log: AttemptLog) -> None:
    log.begin([A], [A], False)
    log.note_failure([A], "x\n" * 1_000_000)
    for _ in range(2):
        log.begin([A], [A], True)
    assert len(log.plan([A], LIMIT).spent[A]) < 600


def test_two_processes_count_both(log: AttemptLog, store: Store) -> None:
    """The second one writes between reading and writing of the first."""
    put, other = store.put, AttemptLog(open_store(store.url), "moments")
    calls = []

    def between(*arguments: object, **options: object) -> str:
        if not calls:
            calls.append(1)
            other.begin([B], [A, B], False)
        return put(*arguments, **options)  # type: ignore[arg-type]

    store.put = between  # type: ignore[method-assign]
    log.begin([A], [A, B], False)
    assert log.plan([A, B], LIMIT).failed == {A, B}

    def always(*_: object, **__: object) -> str:
        raise ConflictError("s", "k", "exists already")

    store.put = always  # type: ignore[method-assign]
    with pytest.raises(ConflictError):
        log.end([A])


def test_an_object_that_holds_no_attempts_is_named(log: AttemptLog, store: Store) -> None:
    store.put("moments/attempts.json", b'{"format": 2}')
    with pytest.raises(DataError, match=r"attempts\.json: holds no attempts"):
        log.plan([A], LIMIT)


# --- deliveries ---

Send = Callable[[str, str], None]


@pytest.fixture
def send(plain: Site, parcel: Callable[[str], Parcel]) -> Send:
    def deliver(name: str, vid: str) -> None:
        sent = parcel(name)
        sent.keep(vid)
        plain.send(name, sent)

    return deliver


def fail(site: Site) -> IngestResult:
    """A night on which the training fails."""
    ingested = site.take()
    site.ledger.attempts.note_failure(ingested.identities, "evaluate: exited with 2")
    return ingested


def names(ingested: IngestResult) -> dict[str, str]:
    return {report.name: report.state for report in ingested.reports}


def test_a_poisoned_delivery_ends_in_quarantine_and_a_good_one_in_a_model(
    plain: Site, send: Send
) -> None:
    """Finding 7: it made each night fail, and no later delivery was ever trained on."""
    send("good", "new-train-0000")
    send("poison", "new-train-0001")
    first = fail(plain)
    assert names(first) == {"good": "taken", "poison": "taken"}
    assert night(plain.ledger.attempts, *first.identities) == first.identities
    send("bad", "new-train-0002")
    plain.incoming.put("bad/train.jsonl", b"{}\n")

    alone = plain.take()
    assert names(alone) == {"good": "taken", "poison": "waiting", "bad": "waiting"}
    reasons = {one.name: one.reasons[-1] for one in alone.reports if one.reasons}
    assert reasons["poison"] == "waits to be tried alone, because retrainings with it failed"
    assert reasons["bad"] == "waits for good, tried alone"
    assert alone.branch is not None
    finish(plain.environment, "no-branch", plain.ledger, alone, alone.branch, decide("refuse"))

    # The others have their turn first: it is refused, but it might be about videos of "poison".
    second = fail(plain)
    assert names(second) == {"poison": "taken", "bad": "waiting"}
    assert second.reports[0].reasons[-1] == "so without what waits: poison"
    assert names(plain.take()) == {"poison": "quarantined", "bad": "quarantined"}
    entries = {one.delivery: one for one in plain.ledger.entries()}
    assert entries["good"].outcome == "refused"
    assert entries["poison"].reasons == [
        "3 retrainings with it failed; the last: evaluate: exited with 2"
    ]
    assert plain.take().reports == []


def test_a_conflict_is_no_failure(plain: Site, send: Send) -> None:
    send("good", "new-train-0000")
    ingested = plain.take()
    assert plain.ledger.attempts.plan(ingested.identities, LIMIT).failed
    assert ingested.branch is not None
    finish(
        plain.environment, "no-branch", plain.ledger, ingested, ingested.branch, decide("conflict")
    )
    assert not plain.ledger.attempts.plan(ingested.identities, LIMIT).failed


def test_a_check_that_is_killed_counts(
    plain: Site, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole machine may be out of memory, not only the process that reads a delivery."""
    send("good", "new-train-0000")

    def killed(*_: object) -> None:
        raise SystemError("as a SIGKILL would leave the attempt")

    with monkeypatch.context() as patch:
        patch.setattr("mrmodel.retrain.ingest.download", killed)
        patch.setattr(AttemptLog, "note_failure", lambda *_: None)
        with pytest.raises(SystemError):
            plain.take()
    (identity,) = [(one.name, one.digest) for one in plain.take().reports]
    assert plain.ledger.attempts.plan([identity], LIMIT).turns == [Turn([identity], True)]


def test_a_push_that_fails_is_not_counted(
    plain: Site, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    send("good", "new-train-0000")

    def unreachable(*_: object) -> None:
        raise OrchestrationError("data could not be pushed")

    monkeypatch.setattr("mrmodel.retrain.dvc_dataset.DvcDataset.commit", unreachable)
    with pytest.raises(OrchestrationError):
        plain.take()
    found = plain.store.get("moments/attempts.json")
    assert found is not None
    assert b"good" not in found.content


def test_the_ledger_is_as_before(plain: Site) -> None:
    """Outcomes are read by earlier versions, so attempts are in an object of their own."""
    plain.ledger.attempts.begin([A], [A], False)
    plain.ledger.note(LedgerEntry(delivery="a", digest="1", outcome="refused", reasons=[]))
    assert plain.store.keys() == ["moments/attempts.json", "moments/deliveries/a/1.json"]
    assert [one.delivery for one in plain.ledger.entries()] == ["a"]
