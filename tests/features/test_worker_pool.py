import contextlib
import os
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from mrmodel.errors import DataError, FeatureError
from mrmodel.features.extraction.worker_pool import (
    Crash,
    Finished,
    Part,
    Restarted,
    WorkerPool,
    run_jobs,
)


def square_maker():
    return square


def square(number):
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 99:
        time.sleep(60)
    if number == -1:
        raise DataError("negative")
    if number == -2:
        raise ValueError("a defect")
    if number == 0:
        return resource.getrlimit(resource.RLIMIT_DATA)[0]
    return number**2


def fails_to_start():
    raise DataError("no weights")


def dies_at_start():
    os._exit(3)


def test_results_and_deaths():
    jobs = [1, 2, 13, 3, 4, 99, 0]
    results = dict(run_jobs(square_maker, jobs, count=2, timeout_s=3.0))
    assert results[13] == Crash("worker process died 2 times (signal 9)")
    assert results[99] == Crash("took longer than the time limit")
    assert {n: results[n] for n in (1, 2, 3, 4)} == {1: 1, 2: 4, 3: 9, 4: 16}
    if sys.platform == "linux":  # No file takes all memory of the machine.
        assert 0 < results[0] < psutil.virtual_memory().total


def test_nothing_to_do_starts_nothing():
    assert list(run_jobs(fails_to_start, [], count=2, timeout_s=1.0)) == []


@pytest.mark.parametrize(
    ("maker", "job", "kind", "words"),
    [
        (square_maker, -1, FeatureError, "negative"),
        (square_maker, -2, RuntimeError, "ValueError: a defect"),
        (fails_to_start, 1, FeatureError, "no weights"),
        (dies_at_start, 1, FeatureError, r"died while starting \(exit code 3\)"),
    ],
)
def test_mistakes_reach_the_caller(maker, job, kind, words):
    with pytest.raises(kind, match=words):
        list(run_jobs(maker, [job], count=1, timeout_s=30.0))


def telling_maker(slots):
    return telling


def telling(job):
    yield os.getpid()
    if job == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    kind, _, file = job.partition(" ")
    while kind == "long" and not Path(file).exists():
        time.sleep(0.01)
    return kind


def wait_for_death(pid):
    """Until a process has ended; its parent need not have noticed."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def events_of(pool, look):
    """Everything that is said until all jobs are over; `look` is called with each event."""
    found = []
    try:
        while not pool.is_done:
            for event in pool.events():
                found.append(event)
                if isinstance(event, Part):
                    event.taken()
                look(event)
    finally:
        pool.close()
    return found


def test_a_worker_that_dies_behind_a_part_has_died():
    pool = WorkerPool(telling_maker, ["dies"], 1, 30.0, slot_bytes=8)

    def come_late(event):
        if isinstance(event, Part):
            wait_for_death(event.value)

    found = events_of(pool, come_late)
    assert [type(event) for event in found] == [Part, Restarted, Part, Finished]
    assert found[-1].result == Crash("worker process died 2 times (signal 9)")


def test_the_death_of_an_idle_worker_costs_nothing(tmp_path):
    long = f"long {tmp_path / 'end'}"
    pool = WorkerPool(telling_maker, [long, "short"], 2, 30.0, slot_bytes=8)
    pids = {}

    def kill_the_idle(event):
        if isinstance(event, Part):
            pids[event.job] = event.value
        elif event.job == "short":
            os.kill(pids["short"], signal.SIGKILL)
            wait_for_death(pids["short"])
            (tmp_path / "end").touch()

    found = events_of(pool, kill_the_idle)
    assert pids[long] != pids["short"]
    assert not [event for event in found if isinstance(event, Restarted)]
    results = {event.job: event.result for event in found if isinstance(event, Finished)}
    assert results == {"short": "short", long: "long"}


def pid_maker(folder):
    (folder / str(os.getpid())).touch()
    return time.sleep


def test_an_abandoned_run_leaves_no_process(tmp_path):
    run = run_jobs(partial(pid_maker, tmp_path), [0.0, 60.0], count=2, timeout_s=90.0)
    assert next(run) == (0.0, None)
    run.close()
    for mark in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(mark.name), 0)
