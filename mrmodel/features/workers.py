"""Worker processes that may die: native code crashes or hangs cost one item, not the run.

Each worker holds one job at a time, so a death always has a known culprit.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from mrmodel.errors import FeatureError, MrModelError
from mrmodel.processes import die_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")

MAX_CRASHES = 2
# Read once by the numeric libraries when they load; more threads than workers only get in the way.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Crash:
    """A job that gave no result: its worker died twice, or ran past the time limit."""

    reason: str


@dataclass(slots=True, eq=False)
class _Worker(Generic[Job]):
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    job: Job | None = None
    deadline: float = float("inf")


def run_jobs(
    make_handler: Callable[[], Callable[[Job], Result]],
    jobs: Sequence[Job],
    count: int,
    timeout_s: float,
) -> Iterator[tuple[Job, Result | Crash]]:
    """Run jobs in `count` spawned processes; yield (job, result) in the order of completion.

    Args:
        make_handler: picklable; called once in every worker, returns what handles a job there.
        jobs: picklable and hashable.
        count: worker processes, each with one numeric thread.
        timeout_s: wall-clock limit of one job; its worker is killed.

    Raises:
        FeatureError: a worker could not start, or a job raised a MrModelError.
        RuntimeError: a job raised anything else; the message holds its traceback.
    """
    waiting, crashes = deque(jobs), dict.fromkeys(jobs, 0)
    workers: list[_Worker[Job]] = []
    try:
        while waiting or any(worker.job is not None for worker in workers):
            busy = sum(worker.job is not None for worker in workers)
            while len(workers) < min(count, busy + len(waiting)):
                workers.append(_start(make_handler))
            for worker in workers:
                if worker.ready and worker.job is None and waiting:
                    _hand_over(worker, waiting.popleft(), timeout_s)
            for worker in _with_news(workers):
                finished = _receive(worker, crashes)
                if not worker.process.is_alive():
                    workers.remove(worker)
                if isinstance(finished, _Again):
                    waiting.appendleft(finished.job)
                elif finished is not None:
                    yield finished
    finally:
        for worker in workers:
            _stop(worker)


@dataclass(frozen=True, slots=True)
class _Again:
    """A job whose worker died, and which gets a second chance."""

    job: Any


def _start(make_handler: Callable[[], Any]) -> _Worker[Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make_handler), daemon=True)
    with _one_thread_each():
        process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    return _Worker(process, ours)


def _hand_over(worker: _Worker[Job], job: Job, timeout_s: float) -> None:
    worker.job, worker.deadline = job, time.monotonic() + timeout_s
    try:
        worker.connection.send(job)
    except OSError:
        return  # It died while idle: reading from it tells the rest.


def _with_news(workers: list[_Worker[Job]]) -> list[_Worker[Job]]:
    """Workers that said something, died, or are late."""
    patience = max(0.0, min(worker.deadline for worker in workers) - time.monotonic())
    connections = [worker.connection for worker in workers]
    spoke = set(wait(connections, timeout=None if patience == float("inf") else patience))
    now = time.monotonic()
    return [worker for worker in workers if worker.connection in spoke or worker.deadline <= now]


def _receive(worker: _Worker[Job], crashes: dict[Job, int]) -> tuple[Job, Any] | _Again | None:
    job = worker.job
    if worker.deadline <= time.monotonic() and not worker.connection.poll():
        _stop(worker)
        return None if job is None else (job, Crash("took longer than the time limit"))
    try:
        kind, value = worker.connection.recv()
    except (EOFError, OSError):
        _stop(worker)
        return _after_death(worker, crashes)
    if kind == "mistake":
        raise FeatureError(value)
    if kind == "defect":
        raise RuntimeError(value)
    worker.ready, worker.job, worker.deadline = True, None, float("inf")
    return None if job is None else (job, value)


def _after_death(worker: _Worker[Job], crashes: dict[Job, int]) -> tuple[Job, Crash] | _Again:
    code = worker.process.exitcode
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    if worker.job is None:
        raise FeatureError(f"a worker process died while starting ({how})")
    crashes[worker.job] += 1
    if crashes[worker.job] < MAX_CRASHES:
        return _Again(worker.job)
    return worker.job, Crash(f"worker process died {MAX_CRASHES} times ({how})")


def _stop(worker: _Worker[Any]) -> None:
    worker.connection.close()
    if worker.process.is_alive():
        # A worker that died by itself is gone in a moment: its exit code is worth waiting for.
        worker.process.join(timeout=0.2)
        worker.process.kill()
    worker.process.join()


def _serve(connection: Connection, make_handler: Callable[[], Callable[[Any], Any]]) -> None:
    """Life of a worker: make the handler, then one job after the other until the pipe ends."""
    die_with_parent()
    try:
        handler = make_handler()
        connection.send(("ready", None))
        while True:
            connection.send(("result", handler(connection.recv())))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except MrModelError as error:
        connection.send(("mistake", str(error)))
    except Exception:
        connection.send(("defect", f"in a worker process:\n{traceback.format_exc()}"))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
