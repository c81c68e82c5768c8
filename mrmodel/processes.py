"""Child processes: how many run, that none outlives its parent, and no secret in their output.

``python -m mrmodel.processes COMMAND...`` runs a command and kills every descendant it leaves.
Standard input is a pipe whose other end the starter holds. When that end closes, because the
starter closes it or was killed, every process that the command has started is killed, also those
whose own parent is gone: this process is their subreaper.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# Exit code of a command that `main` killed.
KILLED = 128 + signal.SIGKILL
# Lines that `run_python` keeps of a program's output.
_LAST_LINES = 20


def worker_count(wish: int) -> int:
    """Number of worker processes: `wish`, or one a core where it is 0."""
    return wish or os.cpu_count() or 1


def tasks_at_once(tasks: int) -> int:
    """How many of so many tasks this machine runs at the same time, when it runs them all."""
    return max(1, min(tasks, os.cpu_count() or 1))


def die_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent dies; does nothing outside Linux.

    DVC killed with SIGKILL leaves the stage command running, which would go on writing into a
    folder that the next `dvc repro` already owns (mlops.md, section 1).
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how, 0, 0, 0)
    if os.getppid() != parent:  # It died just before the request was made.
        os.kill(os.getpid(), how)


_SECRET_NAME = re.compile(r"SECRET|PASSWORD|TOKEN|CREDENTIAL|API_KEY|ACCESS_KEY")
# A shorter value would blot out ordinary words of a log.
_SHORTEST_SECRET = 6


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """Values of the environment that no log may show, the longest first."""
    values = {value for name, value in environ.items() if _SECRET_NAME.search(name)}
    for value in environ.values():
        try:
            password = urlsplit(value).password if "://" in value else None
        except ValueError:
            continue
        if password:
            values.add(password)
    return sorted((v for v in values if len(v) >= _SHORTEST_SECRET), key=len, reverse=True)


def hide_secrets(text: str, secrets: list[str]) -> str:
    """`text` with every secret replaced."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def hide_user(url: str) -> str:
    """A URL without its user and password."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    Attributes:
        code: its exit code; negative: the signal that killed it.
        last: its last lines, without secrets.
    """

    code: int
    last: list[str]


def run_python(
    module: str,
    *arguments: str,
    folder: Path,
    on_line: Callable[[str], object] | None = None,
    variables: Mapping[str, str] | None = None,
    without: tuple[str, ...] = (),
) -> Ended:
    """Run ``python -m module`` in a folder until it ends; it dies with this process.

    Args:
        module: e.g. ``dvc``.
        *arguments: of the module.
        folder: its current folder, e.g. a clone, whose code comes before what is installed.
        on_line: called with every line of its output, without secrets.
        variables: added to its environment.
        without: variables whose names start so are left out.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(without)},
        **(variables or {}),
        "PYTHONPATH": str(folder.resolve()),
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,
    )
    secrets, last = secrets_of(os.environ), deque[str](maxlen=_LAST_LINES)
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last.append(hide_secrets(line.rstrip("\n"), secrets))
                if on_line is not None:
                    on_line(last[-1])
        except BaseException:  # E.g. of a flow that is cancelled.
            process.kill()
            raise
    return Ended(process.returncode, list(last))


def main() -> int:
    """Run the command of the arguments; its exit code, or 137 when it was killed here."""
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
    import psutil  # Served models have this module, and not that package.

    while family := psutil.Process().children(recursive=True):
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=5)


if __name__ == "__main__":
    sys.exit(main())
