"""A retraining that fails is counted against its deliveries, before Prefect hears of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import retrain as flow
from mrmodel.errors import OrchestrationError, RegistryError
from mrmodel.retrain.ingest import IngestResult
from mrmodel.retrain.outcomes import Ledger
from mrmodel.retrain.report import DeliveryReport
from mrmodel.storage import open_store

INGESTED = IngestResult([DeliveryReport("monday", "1" * 64, "taken")], "runs/1")
LIMIT = 2


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """With an attempt that has begun."""
    ledger = Ledger(open_store(str(tmp_path)), "moments")
    for _ in range(LIMIT):
        ledger.attempts.begin(INGESTED.identities, INGESTED.identities, False)
    monkeypatch.setattr(flow, "open_ledger", lambda *_: ledger)
    monkeypatch.setattr(flow, "ingest_deliveries", lambda *_: INGESTED)
    return ledger


Run = Callable[[State[Any]], State[Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The flow, with a pipeline that ends like this, and without a server."""

    def retrain(end: State[Any]) -> State[Any]:
        monkeypatch.setattr(flow, "orchestrate", lambda **_: end)
        return flow.retrain.fn(here=True)

    return retrain


def reason(ledger: Ledger) -> str:
    """Why the delivery failed; empty: it did not fail as often as it may."""
    return ledger.attempts.plan(INGESTED.identities, LIMIT).spent.get(INGESTED.identities[0], "")


def test_a_failed_stage_counts(ledger: Ledger, run: Run) -> None:
    state = run(Failed(message="evaluate: exited with 2"))
    assert state.is_failed()
    assert state.message == "the pipeline failed: evaluate: exited with 2"
    assert reason(ledger).endswith("the last: the pipeline failed: evaluate: exited with 2")


def test_a_pipeline_that_cannot_reach_its_repository_does_not(ledger: Ledger, run: Run) -> None:
    error = OrchestrationError("git clone: cannot be reached")
    assert run(Failed(data=error, message=str(error))).is_failed()
    assert reason(ledger) == ""


def test_a_registration_that_fails_counts(
    ledger: Ledger, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(*_: object) -> None:
        raise RegistryError("the model's answer holds NaN")

    monkeypatch.setattr(flow, "register_and_decide", register)
    with pytest.raises(RegistryError):
        run(Completed(data="runs/2"))
    assert reason(ledger).endswith("the last: the model's answer holds NaN")


def test_a_cancelled_one_does_not(
    ledger: Ledger, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flow, "register_and_decide", register)
    with pytest.raises(KeyboardInterrupt):
        run(Completed(data="runs/2"))
    assert reason(ledger) == ""


def test_what_only_child_processes_need_is_not_imported() -> None:
    """Each night begins with the start of a process; torch and MLflow would be most of it."""
    code = (
        "import sys, mrmodel.registry.revision, mrmodel.retrain.finish; "
        "print([name for name in ('torch', 'mlflow', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
