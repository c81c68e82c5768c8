"""Worker processes that may die: a crash or hang in native code costs one item, not the run.

Each worker runs one job at a time, so a crash is always attributed to a job. A job's result is
sent back at its end; large arrays can be sent before that in parts, through shared memory.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import DupFd
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import FeatureError, MrModelError
from mrmodel.processes import die_with_parent, limit_memory
from mrmodel.startup import collect_garbage_rarely

# Double buffering: one is read while the other is filled.
SLOTS = 2


class SharedSlots:
    """`SLOTS` byte buffers of equal size, in memory shared by two processes.

    It can only be passed to a process when that is started.

    Args:
        fd: an unnamed file of the right size, which is freed with its last process.
        slot_bytes: size of one slot.
    """

    def __init__(self, fd: int, slot_bytes: int) -> None:
        self._fd, self.slot_bytes = fd, slot_bytes
        self._memory = mmap.mmap(fd, SLOTS * slot_bytes)

    @classmethod
    def create(cls, slot_bytes: int) -> SharedSlots:
        """Allocate the memory; not in /dev/shm, which containers limit to 64 MB."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("frames")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, SLOTS * slot_bytes)
        return cls(fd, slot_bytes)

    def array(self, slot: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The first bytes of a slot as a writable array."""
        start = slot * self.slot_bytes
        flat = np.frombuffer(self._memory, np.uint8, int(np.prod(shape)), start)
        return flat.reshape(shape)

    def close(self) -> None:
        """Close the file; arrays that are still in use stay valid."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __reduce__(self) -> tuple[Callable[..., SharedSlots], tuple[Any, int]]:
        return _received, (DupFd(self._fd), self.slot_bytes)


def _received(fd: Any, slot_bytes: int) -> SharedSlots:
    return SharedSlots(fd.detach(), slot_bytes)


Job = TypeVar("Job")
Result = TypeVar("Result")

MAX_CRASHES = 2
# Read by the numeric libraries when they load; one thread per worker avoids oversubscription.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Crash:
    """A job without result: its worker died twice, or ran past the time limit."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finished(Generic[Job]):
    """A job is over; `result` is what its handler returned, or a `Crash`."""

    job: Job
    result: Any


@dataclass(frozen=True, slots=True)
class Restarted(Generic[Job]):
    """The worker of a job died and the job is restarted: discard the parts received so far."""

    job: Job


@dataclass(frozen=True, slots=True)
class Part(Generic[Job]):
    """What a job's handler yielded; call `taken` after reading, as the data may lie in `slots`."""

    job: Job
    value: Any
    _worker: _Worker[Job]

    @property
    def slots(self) -> SharedSlots:
        """The shared memory of this worker."""
        assert self._worker.slots is not None
        return self._worker.slots

    def taken(self) -> None:
        """Allow the worker to overwrite it."""
        self._worker.take()


Event = Finished[Job] | Restarted[Job] | Part[Job]


@dataclass(slots=True, eq=False)
class _Worker(Generic[Job]):
    process: SpawnProcess
    connection: Connection
    slots: SharedSlots | None
    ready: bool = False
    job: Job | None = None
    deadline: float = float("inf")
    # Parts that are not taken yet, and the seconds left to the job when the first of them arrived:
    # time in which the worker waits for us does not count.
    held: int = 0
    left_s: float = field(default=float("inf"))

    def hold(self) -> None:
        if not self.held:
            self.left_s, self.deadline = self.deadline - time.monotonic(), float("inf")
        self.held += 1

    def begin(self, job: Job, timeout_s: float) -> None:
        """Send a job. The timeout starts when no part of the previous job is held."""
        self.job, self.left_s = job, timeout_s
        self.deadline = float("inf") if self.held else time.monotonic() + timeout_s
        self.say("job", job)

    def take(self) -> None:
        self.held -= 1
        if not self.held and self.job is not None:
            self.deadline = time.monotonic() + self.left_s
        self.say("taken", None)

    def say(self, kind: str, value: Any) -> None:
        try:
            self.connection.send((kind, value))
        except OSError:
            return  # It died: the next read detects that.


class WorkerPool(Generic[Job]):
    """Jobs for `count` spawned processes, each with one numeric thread.

    Args:
        make_handler: picklable; called once in every worker, returns the handler of jobs. With
            `slot_bytes` it is called with the worker's `SharedSlots`, and the handler may be a
            generator function: each value that it yields becomes a `Part`, its return value is the
            result. When a generator resumes, the part before the last one has been taken.
        jobs: picklable and hashable.
        count: worker processes; they are started when there are jobs for them.
        timeout_s: wall-clock limit of one job, not counting time in which it waits for us; its
            worker is killed.
        slot_bytes: size of each of a worker's two slots; 0: no shared memory.
    """

    def __init__(
        self,
        make_handler: Callable[..., Callable[[Job], Any]],
        jobs: Sequence[Job],
        count: int,
        timeout_s: float,
        slot_bytes: int = 0,
    ) -> None:
        self._make_handler, self._count, self._timeout_s = make_handler, count, timeout_s
        self._slot_bytes = slot_bytes
        self._waiting, self._crashes = deque(jobs), dict.fromkeys(jobs, 0)
        self._workers: list[_Worker[Job]] = []

    @property
    def is_done(self) -> bool:
        """Whether every job is over."""
        return not self._waiting and all(worker.job is None for worker in self._workers)

    def events(self, *others: Connection) -> list[Event[Job]]:
        """Wait for a message of a worker or of one of `others`; returns the workers' events.

        Raises:
            FeatureError: a worker could not start, or a job raised a MrModelError.
            RuntimeError: a job raised anything else; the message holds its traceback.
        """
        busy = sum(worker.job is not None for worker in self._workers)
        while len(self._workers) < min(self._count, busy + len(self._waiting)):
            self._workers.append(_start(self._make_handler, self._slot_bytes))
        for worker in self._workers:
            is_free = worker.ready and worker.job is None and worker.process.is_alive()
            if is_free and self._waiting:
                worker.begin(self._waiting.popleft(), self._timeout_s)
        found = []
        for worker in self._with_news(others):
            event = self._receive(worker)
            # Not as soon as its process is dead: messages may still be in the pipe.
            if worker.connection.closed:
                self._workers.remove(worker)
            if event is not None:
                found.append(event)
        return found

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            _stop(worker)
        self._workers.clear()

    def _with_news(self, others: Sequence[Connection]) -> list[_Worker[Job]]:
        """Workers that sent a message, died, or are past their deadline."""
        deadlines = [worker.deadline for worker in self._workers]
        patience = max(0.0, min(deadlines, default=float("inf")) - time.monotonic())
        connections = [*(worker.connection for worker in self._workers), *others]
        spoke = set(wait(connections, timeout=None if patience == float("inf") else patience))
        now = time.monotonic()
        return [
            worker
            for worker in self._workers
            if worker.connection in spoke or worker.deadline <= now
        ]

    def _receive(self, worker: _Worker[Job]) -> Event[Job] | None:
        job = worker.job
        if worker.deadline <= time.monotonic() and not worker.connection.poll():
            _stop(worker)
            return None if job is None else Finished(job, Crash("took longer than the time limit"))
        try:
            kind, value = worker.connection.recv()
        except (EOFError, OSError):
            _stop(worker)
            return self._after_death(worker)
        if kind == "mistake":
            raise FeatureError(value)
        if kind == "defect":
            raise RuntimeError(value)
        if kind == "part" and job is not None:
            worker.hold()
            return Part(job, value, worker)
        worker.ready, worker.job, worker.deadline = True, None, float("inf")
        return None if job is None else Finished(job, value)

    def _after_death(self, worker: _Worker[Job]) -> Event[Job] | None:
        code = worker.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        job = worker.job
        if job is None and worker.ready:
            return None  # It was idle; another one is started when there is work.
        if job is None:
            raise FeatureError(f"a worker process died while starting ({how})")
        self._crashes[job] += 1
        if self._crashes[job] < MAX_CRASHES:
            self._waiting.appendleft(job)
            return Restarted(job)
        return Finished(job, Crash(f"worker process died {MAX_CRASHES} times ({how})"))


def run_jobs(
    make_handler: Callable[[], Callable[[Job], Result]],
    jobs: Sequence[Job],
    count: int,
    timeout_s: float,
) -> Iterator[tuple[Job, Result | Crash]]:
    """Run jobs in a `WorkerPool`; yield (job, result) in the order of completion.

    Raises:
        FeatureError, RuntimeError: see `WorkerPool.events`.
    """
    pool = WorkerPool(make_handler, jobs, count, timeout_s)
    try:
        while not pool.is_done:
            for event in pool.events():
                if isinstance(event, Finished):
                    yield event.job, event.result
    finally:
        pool.close()


def _start(make_handler: Callable[..., Any], slot_bytes: int) -> _Worker[Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    slots = SharedSlots.create(slot_bytes) if slot_bytes else None
    process = context.Process(target=_serve, args=(theirs, make_handler, slots), daemon=True)
    with _one_thread_each():
        process.start()
    theirs.close()  # so that the pipe closes when the process ends
    return _Worker(process, ours, slots)


def _stop(worker: _Worker[Any]) -> None:
    worker.connection.close()
    if worker.process.is_alive():
        # Wait briefly, so that a worker that died by itself keeps its exit code.
        worker.process.join(timeout=0.2)
        worker.process.kill()
    worker.process.join()
    if worker.slots is not None:
        worker.slots.close()


def _serve(
    connection: Connection, make_handler: Callable[..., Any], slots: SharedSlots | None
) -> None:
    """Main loop of a worker: make the handler, then run jobs until the pipe closes."""
    die_with_parent()
    collect_garbage_rarely()
    line = _Line(connection)
    try:
        try:
            handler = make_handler() if slots is None else make_handler(slots)
            limit_memory()  # Weights are loaded, and the rest depends on the job.
            line.send("ready", None)
            while True:
                outcome = handler(line.next_job())
                if isinstance(outcome, Generator):
                    outcome = line.send_parts(outcome)
                line.send("result", outcome)
        except MrModelError as error:
            line.send("mistake", str(error))
        except Exception:
            line.send("defect", f"in a worker process:\n{traceback.format_exc()}")
    except (_PipeEndError, KeyboardInterrupt):
        return


class _PipeEndError(BaseException):
    """The parent has closed the pipe or died, so the worker can stop."""


class _Line:
    """A worker's end of the pipe; counts the parts that are not taken yet."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._untaken = 0

    def send(self, kind: str, value: Any) -> None:
        try:
            self._connection.send((kind, value))
        except OSError:
            raise _PipeEndError from None

    def next_job(self) -> Any:
        while True:
            kind, value = self._receive()
            if kind == "job":
                return value
            self._untaken -= 1

    def send_parts(self, parts: Generator[Any, None, Any]) -> Any:
        """Send the values that the generator yields; returns its return value."""
        while True:
            try:
                part = next(parts)
            except StopIteration as end:
                return end.value
            self.send("part", part)
            self._untaken += 1
            while self._untaken == SLOTS:  # No job comes before a result: this is a `taken`.
                self._receive()
                self._untaken -= 1

    def _receive(self) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = self._connection.recv()
        except (EOFError, OSError):
            raise _PipeEndError from None
        return message


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
