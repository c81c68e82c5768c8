"""Manages the workers of a study: started while trials wait, replaced when they die.

`follow` works with any kind of worker; `LocalWorkerPool` starts processes on this machine,
flows/tune.py starts flow runs on a work pool.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from optuna.trial import TrialState

from mrmodel.errors import TuningError
from mrmodel.processes import die_with_parent, hide_secrets, secrets_of
from mrmodel.tracking.provenance import is_alive, process_tags
from mrmodel.tracking.run import PARENT
from mrmodel.tune.space import THREADS
from mrmodel.tune.storage import VARIABLE
from mrmodel.tune.study import Lost, Owner, TrialQueue, owner_of

log = logging.getLogger(__name__)

_POLL_S = 0.25
_SHOWN_LINES = 8
# A flow that is cancelled itself has 30 seconds to end.
_STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """How a worker ended; `failed`: it reported an error, and another one would fail too."""

    reason: str = ""
    failed: bool = False


class WorkerHandle(Protocol):
    """A worker that was started."""

    @property
    def label(self) -> str:
        """`Owner.label` of its trials."""

    def outcome(self) -> WorkerOutcome | None:
        """How it ended; None: it is running."""

    def stop(self) -> None:
        """Request its end; `outcome` tells when it has ended."""


class TrialWorkerPool(Protocol):
    """Starts workers."""

    def earlier(self, study: str) -> Sequence[WorkerHandle]:
        """Workers still running that an earlier, killed process started for a study.

        They are managed like this pool's own.
        """

    def start(self, study: str) -> WorkerHandle:
        """Start another worker for a study."""

    def is_lost(self, owner: Owner) -> bool:
        """Whether a worker of another, earlier pool is certainly gone."""


def is_gone_from_here(owner: Owner) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    return owner.machine == process_tags()["machine"] and not is_alive(owner.process)


def follow(
    study: TrialQueue, worker_pool: TrialWorkerPool, workers: int, on_progress: Callable[[], None]
) -> None:
    """Run all waiting trials of a study.

    Args:
        study: with waiting trials.
        worker_pool: starts the workers.
        workers: maximum number in parallel, as long as there are trials for them.
        on_progress: called after each check of the workers.

    Raises:
        TuningError: a worker failed in a way that others would too, or died repeatedly without
            finishing a trial; finished trials are kept.
    """
    handles = list(worker_pool.earlier(study.name))
    done, idle_deaths = len(study.done()), 0
    # Lost trials of an earlier search. A worker that is still running may just have claimed a trial
    # without having recorded its owner yet.
    study.sweep(lambda owner: not handles if owner is None else worker_pool.is_lost(owner))
    try:
        while True:
            wanted = min(workers - len(handles), _unattended(study, handles))
            handles.extend(worker_pool.start(study.name) for _ in range(wanted))
            for handle in list(handles):
                outcome = handle.outcome()
                if outcome is None:
                    continue
                handles.remove(handle)
                study.sweep(_owned_by({handle.label}))
                if outcome.failed:
                    raise TuningError(f"{study.name}: {outcome.reason}")
                if outcome.reason:
                    now = len(study.done())
                    idle_deaths = idle_deaths + 1 if now == done else 0
                    done = now
                    log.warning("%s: a worker died: %s", study.name, outcome.reason)
                if idle_deaths > study.facts.attempts * workers:
                    raise TuningError(f"{study.name}: workers die: {outcome.reason}")
            on_progress()
            if not handles:
                # One that was killed right after its claim has not recorded its owner.
                study.sweep(lambda owner: owner is None)
                if not study.trials(TrialState.WAITING):
                    return
            time.sleep(_POLL_S)
    finally:
        study.sweep(_owned_by({handle.label for handle in _stop(handles)}))


def _unattended(study: TrialQueue, handles: Sequence[WorkerHandle]) -> int:
    """Number of waiting trials for which no worker is starting."""
    owners = [owner_of(trial) for trial in study.trials(TrialState.RUNNING)]
    busy = {owner.label for owner in owners if owner is not None}
    coming = sum(handle.label not in busy for handle in handles)
    return len(study.trials(TrialState.WAITING)) - coming


def _stop(handles: Sequence[WorkerHandle]) -> list[WorkerHandle]:
    """Stop workers; returns those that have ended. A later search treats the others as lost."""
    for handle in handles:
        handle.stop()
    until = time.monotonic() + _STOP_S
    while any(handle.outcome() is None for handle in handles) and time.monotonic() < until:
        time.sleep(_POLL_S)
    return [handle for handle in handles if handle.outcome() is not None]


def _owned_by(labels: set[str]) -> Lost:
    return lambda owner: owner is not None and owner.label in labels


class LocalWorkerPool:
    """Processes on this machine, in the current folder.

    Args:
        address: of the storage.
        folder: for their output, one file each.
        parent_run: id of the search's MLflow run; None: it has none.
        workers: number in parallel; each gets an equal part of the cores.
    """

    def __init__(
        self, address: str, folder: Path, parent_run: str | None, workers: int = 1
    ) -> None:
        self._folder = folder
        self._environment = {**os.environ, VARIABLE: address, "PYTHONUNBUFFERED": "1"}
        self._environment.pop(PARENT, None)
        if parent_run is not None:
            self._environment[PARENT] = parent_run
        if workers > 1:
            threads = max(1, (os.cpu_count() or 1) // workers)
            self._environment[THREADS] = str(threads)

    def earlier(self, study: str) -> Sequence[WorkerHandle]:
        """None: workers die with the process that started them."""
        return ()

    def start(self, study: str) -> WorkerHandle:
        """Start a process that dies with this one."""
        return _LocalWorker(study, self._folder, self._environment)

    def is_lost(self, owner: Owner) -> bool:
        """Whether the owner ran on this machine and has ended."""
        return is_gone_from_here(owner)


class _LocalWorker:
    def __init__(self, study: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._label = uuid4().hex[:12]
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"{study}.{self._label}.log"
        command = [sys.executable, "-m", "mrmodel.tune.worker", study, "--owner", self._label]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )

    @property
    def label(self) -> str:
        return self._label

    def outcome(self) -> WorkerOutcome | None:
        code = self._process.poll()
        if code is None:
            return None
        if code == 0:
            self._log.unlink(missing_ok=True)
            return WorkerOutcome()
        text = self._log.read_text(encoding="utf-8", errors="replace").strip()
        last = hide_secrets("\n".join(text.splitlines()[-_SHOWN_LINES:]), secrets_of(os.environ))
        if code < 0:
            return WorkerOutcome(f"signal {-code} ({self._log})")
        return WorkerOutcome(f"{last} ({self._log})", failed=True)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
