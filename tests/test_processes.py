"""The guard leaves no process behind, whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

GUARD = [sys.executable, "-m", "mrmodel.processes"]
# A child, and a grandchild in a session of its own whose parent has gone: nobody's but the guard's.
ORPHAN = """
import os, time
os.setsid()
open("{folder}/orphan", "w").write(str(os.getpid()))
time.sleep(600)
"""
BETWEEN = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
CHILD = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {between!r}, {orphan!r}])
open("{folder}/child", "w").write(str(os.getpid()))
time.sleep({sleep})
sys.exit({code})
"""
STARTER = """
import subprocess, time
subprocess.Popen({command!r}, stdin=subprocess.PIPE)
time.sleep(600)
"""


def guarded(folder: Path, sleep: float = 600, code: int = 0) -> list[str]:
    orphan = ORPHAN.format(folder=folder)
    program = CHILD.format(between=BETWEEN, orphan=orphan, folder=folder, sleep=sleep, code=code)
    return [*GUARD, sys.executable, "-c", program]


def start(folder: Path, sleep: float = 600, code: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen(guarded(folder, sleep, code), stdin=subprocess.PIPE)


def family(folder: Path) -> list[int]:
    deadline = time.monotonic() + 30
    files = [folder / "child", folder / "orphan"]
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(file.read_text()) for file in files]


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("code", [0, 7])
def test_the_exit_code_is_the_command_s(tmp_path: Path, code: int) -> None:
    guard = start(tmp_path, sleep=2, code=code)
    pids = family(tmp_path)
    assert guard.wait(timeout=30) == code
    assert_gone(pids)
    guard.stdin.close()


def test_closing_the_pipe_kills_everything(tmp_path: Path) -> None:
    guard = start(tmp_path)
    pids = family(tmp_path)
    guard.stdin.close()
    assert guard.wait(timeout=30) == 128 + signal.SIGKILL
    assert_gone(pids)


def test_a_killed_command_is_told_apart(tmp_path: Path) -> None:
    guard = start(tmp_path)
    pids = family(tmp_path)
    os.kill(pids[0], signal.SIGKILL)
    assert guard.wait(timeout=30) == 128 + signal.SIGKILL
    assert_gone(pids)
    guard.stdin.close()


def test_the_death_of_the_starter_is_the_end(tmp_path: Path) -> None:
    """The starter is killed with SIGKILL, so nothing of it can clean up."""
    program = STARTER.format(command=guarded(tmp_path))
    starter = subprocess.Popen([sys.executable, "-c", program])
    pids = family(tmp_path)
    starter.kill()
    starter.wait()
    assert_gone(pids)
