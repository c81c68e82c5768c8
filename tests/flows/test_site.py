"""The site of the tests: a dead worker ends a test at once, with what the worker said last."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.flows.conftest import Site
from tests.project import Project

# In place of Prefect: a worker that may not write where another user was first.
DIES = "#!/bin/sh\necho \"PermissionError: '/tmp/runner_storage/1'\"\nexit 3\n"
LIVES = "#!/bin/sh\nexec sleep 600\n"
SAID = (
    r"worker of the pool cpu gave 3:\s+--- worker-cpu\.log\s+PermissionError: '/tmp/runner_storage"
)


def site_with(program: str, folder: Path) -> Site:
    """A site whose workers are this program."""
    (folder / "prefect").write_text(program)
    (folder / "prefect").chmod(0o755)
    site = Site(Project.at(folder), folder, {"PATH": f"{folder}:/usr/bin:/bin"})
    site.start_worker("cpu")
    return site


def orchestrator(script: str) -> subprocess.Popen[str]:
    """A process in place of an orchestrator."""
    return subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)


def test_a_dead_worker_ends_the_wait_for_an_orchestrator(tmp_path: Path) -> None:
    site = site_with(DIES, tmp_path)
    waits = orchestrator("exec sleep 600")
    with pytest.raises(AssertionError, match=SAID):
        site.finish(waits)
    assert waits.wait(timeout=5) < 0, "it must not outlive the test"
    with pytest.raises(AssertionError, match=SAID):
        site.wait_for_stage("evaluate")


def test_an_orchestrator_may_end_while_the_workers_run(tmp_path: Path) -> None:
    site = site_with(LIVES, tmp_path)
    try:
        assert site.finish(orchestrator("echo done; exit 1"), code=1) == "done\n"
        with pytest.raises(AssertionError, match="said before"):
            site.finish(orchestrator("echo said before; exit 2"))
    finally:
        site.stop_workers()
    assert {worker.poll() is None for worker in site.workers.values()} == {False}
