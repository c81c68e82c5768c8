"""Run a server that must not outlive another process, such as a killed test session.

Usage: guard.py OWNER STOP_SIGNAL COMMAND...   (stand-alone; it imports nothing of mrmodel)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil

_LOOK_S, _POLL_S = 0.5, 0.05
_PATIENCE_S, _INIT_S = 15.0, 2.0


def end_session(leader: int, pid: int, stop_signal: int, patience_s: float) -> None:
    """Stop a server, then its remaining children; SIGKILL for those that take longer.

    The children get a signal only once the server is gone: a server that stops its own children
    knows the right order (PostgreSQL); others leave them running (MLflow).

    Args:
        leader: first process of the session in which the server runs.
        pid: the server.
        stop_signal: requests a clean shutdown.
        patience_s: seconds before SIGKILL.
    """
    doomed = _members(leader, pid)
    server = [process for process in doomed if process.pid == pid]
    _signal(server, stop_signal)
    _wait(server, patience_s)
    rest = list({*doomed, *_members(leader, pid)} - {*server})
    _signal(rest, signal.SIGTERM)
    alive = _wait([*server, *rest], patience_s / 2)
    _signal(alive, signal.SIGKILL)
    _wait(alive, _PATIENCE_S)
    # PostgreSQL takes a zombie for a live process. Init reaps it, if there is an init.
    psutil.wait_procs([*server, *rest], timeout=_INIT_S)


def _members(leader: int, pid: int) -> list[psutil.Process]:
    """The server, its descendants and its session, without this process.

    The session also contains children whose parent died. Its id is not reused as long as one of
    them lives.
    """
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            if process.pid == pid:
                found.update([process, *process.children(recursive=True)])
            elif os.getsid(process.pid) == leader:
                found.add(process)
    return [process for process in found if process.pid != os.getpid()]


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those still running after `seconds`; a zombie that no init reaps does not count."""
    end = time.monotonic() + seconds
    while (alive := [one for one in processes if _runs(one)]) and time.monotonic() < end:
        time.sleep(_POLL_S)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        # The first check rules out another process with the same pid.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def main(owner: int, stop_signal: int, command: list[str]) -> int:
    """Run `command` until it ends, this process gets a signal, or `owner` is gone.

    It polls twice a second. The kernel's parent-death signal is not enough: it reaches children
    only, and is already sent when the thread that started them ends.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if not psutil.pid_exists(owner):
        return 1
    holder, child = psutil.Process(owner), subprocess.Popen(command)
    try:
        while child.poll() is None and _runs(holder):
            time.sleep(_LOOK_S)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Shutdown runs only once.
        end_session(os.getpid(), child.pid, stop_signal, _PATIENCE_S)
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
