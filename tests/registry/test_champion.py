"""One champion, whoever writes at the same time and whenever a process dies."""

import multiprocessing
import os
import secrets
import shutil
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import pytest

from mrmodel.errors import ConflictError, DataError, RegistryError
from mrmodel.registry.champion import ModelRegistry
from mrmodel.registry.promote import rolled_back
from tests.registry.trial import Deadly, Trial, promotion_of, require_agreement

WRITERS = 8
# The whole measurement is 100: MRMODEL_TEST_ROUNDS=100 pytest tests/registry/test_champion.py
ROUNDS = int(os.environ.get("MRMODEL_TEST_ROUNDS", "5"))
# Its server imports MLflow and its stores once for all the processes below, and opens nothing.
STORES = ("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.registry.trial", *STORES])


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """Folder of one MLflow database for all tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(empty_mlflow, folder)
    return folder


@pytest.fixture(
    params=["folder", pytest.param("s3", marks=[pytest.mark.services, pytest.mark.slow])]
)
def trial(request: pytest.FixtureRequest, state: Path, tmp_path: Path) -> Trial:
    """An empty registry."""
    name = f"moments-{secrets.token_hex(4)}"
    if request.param == "folder":
        return Trial(state, str(tmp_path), name)
    request.getfixturevalue("s3_env")
    return Trial(state, f"s3://mrmodel/{name}", name)


@pytest.fixture
def plain(state: Path, tmp_path: Path) -> Trial:
    """An empty registry in a folder."""
    return Trial(state, str(tmp_path), f"moments-{secrets.token_hex(4)}")


def start(target: Any, *arguments: Any) -> BaseProcess:
    # The server was started before the credentials of this test's store were known.
    process = PROCESSES.Process(target=run_with, args=(dict(os.environ), target, *arguments))
    process.start()
    return process


def run_with(environment: dict[str, str], target: Any, *arguments: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


def write_often(trial: Trial, version: int, barrier: Any, results: Any) -> None:
    registry = trial.open()
    for number in range(ROUNDS):
        seen = registry.read()
        pointer = promotion_of(version, seen)
        barrier.wait(300)
        try:
            registry.move(seen, pointer)
            results.put((number, version))
        except ConflictError:
            results.put((number, None))
        barrier.wait(300)


def test_of_eight_concurrent_promotions_exactly_one_wins(trial: Trial) -> None:
    registry = trial.add_versions(WRITERS)
    barrier, results = PROCESSES.Barrier(WRITERS + 1), PROCESSES.Queue()
    versions = range(1, WRITERS + 1)
    writers = [start(write_often, trial, version, barrier, results) for version in versions]
    try:
        for number in range(ROUNDS):
            barrier.wait(300)
            barrier.wait(300)
            found = [results.get(timeout=60) for _ in writers]
            assert {one for one, _ in found} == {number}
            winners = [version for _, version in found if version is not None]
            assert len(winners) == 1
            pointer = require_agreement(registry)
            assert (pointer.version, pointer.sequence) == (winners[0], number + 1)
    except BrokenBarrierError:
        pytest.fail(f"a writer died: {[writer.exitcode for writer in writers]}")
    finally:
        for writer in writers:
            writer.join(60)
            writer.kill()


def move_and_die(trial: Trial, kind: str, fatal: int) -> None:
    registry = trial.open(Deadly(fatal).around)
    seen = registry.read()
    pointer = promotion_of(3, seen)
    if kind == "rollback":
        assert seen.pointer is not None
        decision = pointer.decision.model_copy(update={"kind": "rollback", "version": 1})
        pointer = rolled_back(seen.pointer, decision)
    registry.move(seen, pointer)


def killed_before(trial: Trial, kind: str, fatal: int) -> bool:
    """Let a process die before that write; whether there was one."""
    process = start(move_and_die, trial, kind, fatal)
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize(("kind", "moved", "writes"), [("promote", 3, 6), ("rollback", 1, 5)])
def test_a_process_killed_at_any_step_leaves_work_that_reconcile_finishes(
    trial: Trial, kind: str, moved: int, writes: int
) -> None:
    """The writes: the old audit object, the pointer, each alias that changes, the audit object."""
    for fatal in range(writes + 1):
        place = Trial(trial.state, f"{trial.store}/{fatal}", f"{trial.name}-{fatal}")
        registry = place.add_versions(3)
        for version in (1, 2):
            registry.move(registry.read(), promotion_of(version, registry.read()))
        assert killed_before(place, kind, fatal) == (fatal < writes)
        registry.reconcile()
        assert require_agreement(registry).version == (moved if fatal > 1 else 2)
        assert registry.reconcile() == []


def test_reconcile_sets_right_what_a_killed_promotion_left(trial: Trial) -> None:
    registry = trial.add_versions(3)
    assert killed_before(trial, "promote", 1)
    left = registry.read().pointer
    assert left is not None
    assert (registry.history(), registry.versions.aliases()) == ([], {})
    assert set(registry.reconcile()) == {
        "alias champion: None -> 3",
        f"wrote the audit object {left.decision.id}",
    }
    assert registry.history() == [left.decision]


def test_a_pointer_is_replaced_only_when_its_audit_object_is_there(trial: Trial) -> None:
    registry = trial.add_versions(3)
    assert killed_before(trial, "promote", 1)
    left = registry.read()
    registry.move(left, promotion_of(2, left))
    assert [one.version for one in registry.history()] == [3, 2]
    require_agreement(registry)


def test_the_pointer_wins_over_aliases_that_somebody_set(plain: Trial) -> None:
    registry = plain.add_versions(3)
    registry.move(registry.read(), promotion_of(1, registry.read()))
    registry.versions.set_alias("champion", 2)
    registry.versions.set_alias("previous", 3)
    assert registry.reconcile() == ["alias champion: 2 -> 1", "alias previous: 3 -> None"]
    assert registry.versions.aliases() == {"champion": 1, "challenger": 3}


def test_an_audit_object_is_written_once(trial: Trial) -> None:
    registry = trial.open()
    decision = promotion_of(1, registry.read()).decision
    assert registry.note(decision)
    assert not registry.note(decision)
    with pytest.raises(RegistryError, match="audit objects never change"):
        registry.note(decision.model_copy(update={"version": 2}))
    assert registry.history() == [decision]


def test_without_a_champion_there_is_no_alias_but_the_challenger(plain: Trial) -> None:
    assert plain.open().reconcile() == []
    assert plain.add_versions(1).reconcile() == ["alias challenger: None -> 1"]


def test_an_object_that_is_no_pointer_is_named(plain: Trial) -> None:
    registry = plain.open()
    registry.store.put(f"{plain.name}/champion.json", b'{"version": 1}')
    with pytest.raises(DataError, match=r"champion\.json: holds no pointer"):
        registry.read()


def test_rollbacks_go_back_and_never_forth(plain: Trial) -> None:
    registry = plain.add_versions(3)
    for version in (1, 2, 3):
        registry.move(registry.read(), promotion_of(version, registry.read()))
    assert back(registry, 2) == (2, 1, [3])
    assert back(registry, 1) == (1, None, [2, 3])
    # Undone: the later one may serve again, and nobody else is withdrawn for that.
    assert back(registry, 3) == (3, 1, [2])


def back(registry: ModelRegistry, version: int) -> tuple[int, int | None, list[int]]:
    seen = registry.read()
    assert seen.pointer is not None
    decision = promotion_of(version, seen).decision
    pointer = rolled_back(seen.pointer, decision.model_copy(update={"kind": "rollback"}))
    registry.move(seen, pointer)
    require_agreement(registry)
    return pointer.version, pointer.previous, pointer.withdrawn
