"""Finding 19: a clock that is set back neither kills a process nor reorders the history."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from mrmodel.registry import promote
from mrmodel.registry.champion import ModelRegistry
from mrmodel.registry.decision import Decision, Pointer, decision_id, timestamp
from mrmodel.registry.mlflow_versions import Versions
from mrmodel.registry.promote import promoted, rolled_back
from mrmodel.storage import open_store
from mrmodel.tracking.provenance import is_alive, process_tags


class Aliases:
    """Versions without MLflow."""

    name = "moments"

    def __init__(self) -> None:
        self.known: dict[str, int | None] = {}

    def all(self) -> list[Any]:
        return []

    def aliases(self) -> dict[str, int | None]:
        return self.known

    def set_alias(self, alias: str, version: int | None) -> None:
        self.known[alias] = version


def test_a_living_process_stays_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding 19: the proof of the audit."""
    tag = process_tags()["process"]
    assert tag.startswith(f"{os.getpid()}:")
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: 12.5)
    assert is_alive(tag)


def test_identities_of_others_are_not_alive() -> None:
    """Finding 19: another start, another boot, a process that has ended, what is none."""
    tag = process_tags()["process"]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    began = Path(f"/proc/{ended.pid}/stat").read_text().rpartition(")")[2].split()[19]
    boot = tag.partition("@")[2]
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    others = [f"{ended.pid}:{began}@{boot}"]
    others += [f"{os.getpid()}:1@{boot}", tag.replace(boot, "0" * 36), tag.replace(boot, "")]
    others += ["", ":", "x:1.00", "x:1@y", "-1:1@y", f"{1 << 70}:1@y", f"{1 << 70}:1.00"]
    assert [one for one in others if is_alive(one)] == []
    ended.wait()


def test_records_of_earlier_versions_are_read() -> None:
    """Finding 19: they hold the wall-clock time of the start."""
    own = psutil.Process()
    assert is_alive(f"{own.pid}:{own.create_time():.2f}")
    assert not is_alive(f"{own.pid}:{own.create_time() + 1:.2f}")


@pytest.mark.parametrize("numbered", [True, False])
def test_the_history_is_in_the_order_of_the_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered: bool
) -> None:
    """Finding 19: the clock goes back an hour per decision; the refusals keep their time."""
    registry = ModelRegistry(cast(Versions, Aliases()), open_store(str(tmp_path)))
    now, calls = timestamp(), []

    def backwards() -> Any:
        calls.append(1)
        return now - timedelta(hours=len(calls))

    monkeypatch.setattr(promote, "timestamp", backwards)
    if not numbered:
        monkeypatch.setattr(
            promote, "decision_id", lambda at, _: decision_id(at).replace("-0-", "-")
        )
    kinds = [("promote", 1), ("promote", 2), ("refuse", 3), ("promote", 3), ("rollback", 2)]
    for kind, version in kinds:
        seen = registry.read()
        decision: Decision = promote._decision(registry, seen, version, "0" * 64, "")
        decision = decision.model_copy(update={"kind": kind})
        if kind == "refuse":
            registry.note(decision)
            continue
        make = promoted if kind == "promote" else rolled_back
        pointer: Pointer = make(seen.pointer, decision)
        registry.move(seen, pointer)
    told = [(one.kind, one.version) for one in registry.history()]
    moves = [one for one in told if one[0] != "refuse"]
    assert moves[-1] == ("rollback", 2)
    if numbered:
        assert moves == [one for one in kinds if one[0] != "refuse"]
    assert told.count(("refuse", 3)) == 1
