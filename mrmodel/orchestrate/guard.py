"""``python -m mrmodel.orchestrate.guard COMMAND...``: run a command and leave nothing of it behind.

Standard input is a pipe whose other end the starter holds. When that end closes, because the
starter wants an end or because it was killed, every process that the command has started is
killed, also those whose own parent is gone: this process adopts them.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

import psutil

from mrmodel.processes import die_with_parent

_PR_SET_CHILD_SUBREAPER = 36
KILLED = 128 + signal.SIGKILL


def main() -> int:
    """Exit code of the command; 137 when it was killed here."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A worker that ends a flow signals its whole process group; the pipe says when it is time.
    os.setsid()
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    handle = os.pidfd_open(child.pid)
    try:
        ready, _, _ = select.select([handle, sys.stdin.fileno()], [], [])
        code = child.wait() if handle in ready else KILLED
    finally:
        _kill_all()
    return code if code >= 0 else 128 - code


def _kill_all() -> None:
    """Kill and reap until no descendant is left."""
    while family := psutil.Process().children(recursive=True):
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=5)


if __name__ == "__main__":
    sys.exit(main())
