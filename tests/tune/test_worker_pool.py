"""Worker processes on this machine: killed ones are replaced, counts stay exact."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from mrmodel.errors import TuningError
from mrmodel.tracking.provenance import process_tags
from mrmodel.tune.storage import open_storage
from mrmodel.tune.study import Owner, TrialQueue, owner_of
from mrmodel.tune.worker_pool import LocalWorkerPool, WorkerHandle, follow
from tests.services import PostgresService
from tests.tune.conftest import make_study


def states(study: TrialQueue) -> Counter[str]:
    return Counter(trial.state.name for trial in study.trials())


def pool_for(address: str) -> LocalWorkerPool:
    return LocalWorkerPool(address, Path("workers"), None)


def kill_one(address: str) -> None:
    """SIGKILL a worker in the middle of a trial, as soon as four of them work."""
    study = TrialQueue(open_storage(address), "main")
    until = time.monotonic() + 120
    while time.monotonic() < until:
        # One that has not drawn its values yet would draw others when it is tried again.
        drawn = [owner_of(trial) for trial in study.trials(TrialState.RUNNING) if trial.params]
        if len(drawn) == 4 and drawn[1] is not None:
            os.kill(int(drawn[1].process.partition(":")[0]), signal.SIGKILL)
            return
        time.sleep(0.05)
    raise AssertionError("four workers never worked at once")


def test_four_workers_of_which_one_is_killed(postgres: PostgresService, no_servers: Path) -> None:
    address = postgres.database(f"optuna_{uuid4().hex[:12]}")
    study = make_study(address, "Sleeping", seconds=0.4)
    study.fill(16)
    killer = threading.Thread(target=kill_one, args=(address,))
    killer.start()
    follow(study, pool_for(address), 4, lambda: None)
    killer.join()
    assert states(study) == {"COMPLETE": 16, "FAIL": 1}
    (failed,) = study.trials(TrialState.FAIL)
    (again,) = [trial for trial in study.trials() if trial.user_attrs.get("retry_of") is not None]
    assert again.params == failed.params
    assert again.user_attrs["origin_seen"] == failed.number


def test_each_end_of_a_trial_has_its_state_and_reason(no_servers: Path) -> None:
    address = str(no_servers / "journal.log")
    moods = {"1": "killed", "2": "stopped", "3": "diverged"}
    study = make_study(address, "Moody", moods=moods)
    study.fill(5)
    follow(study, pool_for(address), 1, lambda: None)
    assert states(study) == {"COMPLETE": 3, "PRUNED": 2, "FAIL": 1}
    reasons = {trial.number: trial.user_attrs.get("reason") for trial in study.trials()}
    assert reasons[1] == "its worker was killed"
    assert reasons[2] == "pruned at epoch 3"
    assert reasons[3] is not None
    assert "loss = nan" in reasons[3]


def test_an_error_that_every_trial_would_meet_ends_the_search(no_servers: Path) -> None:
    address = str(no_servers / "journal.log")
    study = make_study(address, "Moody", moods={"1": "no data"})
    study.fill(4)
    with pytest.raises(TuningError, match=r"train\.jsonl: has no rows"):
        follow(study, pool_for(address), 1, lambda: None)
    # The trial waits for a search that goes on once the mistake is mended.
    assert states(study) == {"COMPLETE": 1, "FAIL": 1, "WAITING": 3}


def test_workers_that_die_at_once_end_the_search(no_servers: Path) -> None:
    address = str(no_servers / "journal.log")
    study = make_study(address, "AlwaysKilled", attempts=2)
    study.fill(1)
    with pytest.raises(TuningError, match="workers die: signal 9"):
        follow(study, pool_for(address), 1, lambda: None)
    assert states(study)["RUNNING"] == 0


def test_trials_of_an_earlier_search_that_was_killed_are_taken_up(no_servers: Path) -> None:
    address = str(no_servers / "journal.log")
    study = make_study(address, "Sleeping")
    study.fill(3)
    tags = process_tags()
    dead = Owner("dead", tags["machine"], "1:1.00")
    alive = Owner("alive", tags["machine"], tags["process"])
    elsewhere = Owner("elsewhere", "another machine", "1:1.00")
    for owner in (dead, alive, elsewhere):
        study.claim(owner, NopPruner())
    follow(study, pool_for(address), 2, lambda: None)
    assert states(study) == {"FAIL": 1, "RUNNING": 2, "COMPLETE": 1}


class Heir(LocalWorkerPool):
    """Takes over a worker that another pool has started."""

    def __init__(self, address: str, handle: WorkerHandle) -> None:
        super().__init__(address, Path("workers"), None)
        self.handle = handle

    def earlier(self, study: str) -> Sequence[WorkerHandle]:
        return [self.handle]


def test_a_worker_of_an_earlier_search_is_followed_like_ones_own(no_servers: Path) -> None:
    address = str(no_servers / "journal.log")
    study = make_study(address, "Sleeping", seconds=0.5)
    study.fill(3)
    earlier = pool_for(address).start("main")

    def kill() -> None:
        """SIGKILL it in the middle of its second trial."""
        if len(study.done()) == 1 and not study.trials(TrialState.FAIL):
            owners = [owner_of(trial) for trial in study.trials(TrialState.RUNNING)]
            for owner in owners:
                assert owner is None or owner.label == earlier.label
                if owner is not None:
                    os.kill(int(owner.process.partition(":")[0]), signal.SIGKILL)

    follow(study, Heir(address, earlier), 1, kill)
    assert states(study) == {"COMPLETE": 3, "FAIL": 1}
    done = [owner_of(trial) for trial in study.done()]
    assert [owner is not None and owner.label == earlier.label for owner in done] == [
        True,
        False,
        False,
    ]


class CountingCrew(LocalWorkerPool):
    """Counts whom it starts."""

    started = 0

    def start(self, study: str) -> WorkerHandle:
        self.started += 1
        return super().start(study)


def test_no_more_workers_are_started_than_trials_wait(no_servers: Path) -> None:
    address = str(no_servers / "journal.log")
    study = make_study(address, "Sleeping", seconds=0.1)
    study.fill(2)
    worker_pool = CountingCrew(address, Path("workers"), None)
    follow(study, worker_pool, 4, lambda: None)
    assert states(study) == {"COMPLETE": 2}
    assert worker_pool.started == 2


def test_a_search_that_ends_leaves_no_worker(no_servers: Path) -> None:
    address = str(no_servers / "journal.log")
    study = make_study(address, "Sleeping", seconds=60.0)
    study.fill(2)

    def interrupt() -> None:
        if study.trials(TrialState.RUNNING):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(study, pool_for(address), 1, interrupt)
    assert states(study) == {"FAIL": 1, "WAITING": 2}
    (failed,) = study.trials(TrialState.FAIL)
    owner = owner_of(failed)
    assert owner is None or pool_for(address).is_lost(owner)
