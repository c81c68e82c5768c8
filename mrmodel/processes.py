"""Child processes: worker counts, termination with the parent, no secrets in the output.

``python -m mrmodel.processes COMMAND...`` runs a command and kills any descendants it leaves.
Standard input is a pipe held open by the caller. When it closes, because the caller closes it or is
killed, every process started by the command is killed, including orphans: this process is their
subreaper.
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
# Number of last output lines that `run_python` keeps.
_LAST_LINES = 20


def worker_count(requested: int) -> int:
    """Number of worker processes: `requested`, or one per core if it is 0."""
    return requested or os.cpu_count() or 1


def tasks_at_once(tasks: int) -> int:
    """Number of tasks, out of `tasks`, that this machine runs concurrently."""
    return max(1, min(tasks, os.cpu_count() or 1))


def die_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent dies; does nothing outside Linux.

    If DVC is killed with SIGKILL, the stage command keeps running and would write into a folder
    that the next `dvc repro` already uses.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how, 0, 0, 0)
    if os.getppid() != parent:  # The parent died just before the prctl call.
        os.kill(os.getpid(), how)


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 if it is gone.

    Read from /proc: psutil adds the wall-clock time, which may be changed.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def boot_id() -> str:
    """Identifies the boot of this machine; empty outside Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


_SECRET_NAME = re.compile(r"SECRET|PASSWORD|TOKEN|CREDENTIAL|API_KEY|ACCESS_KEY")
# Hiding shorter values would mask ordinary words of a log.
_SHORTEST_SECRET = 6


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """Secret values of the environment, longest first."""
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
    """Result of a program.

    Attributes:
        code: exit code; negative: the signal that killed it.
        last: its last output lines, without secrets.
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
        folder: working directory, e.g. a clone, whose code takes precedence over installed code.
        on_line: called with every line of output, without secrets.
        variables: added to its environment.
        without: prefixes of environment variables to remove.
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
        except BaseException:  # E.g. if a flow is cancelled.
            process.kill()
            raise
    return Ended(process.returncode, list(last))


def main() -> int:
    """Run the command in the arguments; returns its exit code, or 137 if it was killed here."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A worker signals the whole process group when it ends a flow; here only the pipe counts.
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
    """Kill and reap all descendants."""
    import psutil  # Not installed with served models, which include this module.

    while family := psutil.Process().children(recursive=True):
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=5)


if __name__ == "__main__":
    sys.exit(main())
