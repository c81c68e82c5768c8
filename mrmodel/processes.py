"""Child processes: worker counts, termination with the parent, secrets kept from them and hidden.

``python -m mrmodel.processes COMMAND...`` runs a command and kills any descendants it leaves.
Standard input is a pipe held open by the caller. When it closes, because the caller closes it or is
killed, every process started by the command is killed, including orphans: this process is their
subreaper.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 3, 4, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
# What root keeps, numbers 0 to 3, concerns files. Others let it look into processes past Landlock:
# CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON.
_KEPT_CAPABILITIES, _MOST_CAPABILITIES = 4, 64
# System calls, with the same numbers on all processors, and a right of Landlock.
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT, _MAKE_DEVICE = 444, 446, 1 << 6
# Exit code of a command that `main` killed.
KILLED = 128 + signal.SIGKILL
# Number of last output lines that `run_python` keeps.
_LAST_LINES = 20
# Bytes that all processes of a container may have.
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
# Seconds between two looks whether a process is to be killed.
_LOOK_S = 0.1


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


def limit_memory(share: float = 0.5) -> None:
    """Let this process allocate at most a share of the memory of its machine, and what it has now.

    A file that says it needs more then gives an error about that file. Without a limit the kernel
    ends a process of its choice. Does nothing outside Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # There is none, or it is "max".
        memory = min(memory, int(_CONTAINER_LIMIT.read_text()))
    found = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    has = int(found[1]) << 10 if found else 0
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = has + round(share * memory)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def read_no_other_process() -> None:
    """Keep this process from reading environment and memory of others; for ``preexec_fn``.

    Also as root. Where the kernel has no Landlock (before 5.13, or switched off), a process of an
    ordinary user is kept from processes within `unreadable` only.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(_KEPT_CAPABILITIES, _MOST_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    # A Landlock domain cannot look into processes outside of it, whatever else it forbids. It must
    # forbid something: no program here makes a device file.
    forbidden = ctypes.c_uint64(_MAKE_DEVICE)
    domain = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(forbidden), ctypes.c_size_t(8), 0)
    if domain >= 0:
        libc.syscall(_LANDLOCK_RESTRICT, domain, 0)
        os.close(domain)


@contextmanager
def unreadable() -> Iterator[None]:
    """Let no process without rights of root read environment and memory of this one."""
    if not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None)
    before = libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_DUMPABLE, before, 0, 0, 0)


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


# An AWS_ACCESS_KEY_ID is a name, and GIT_AUTHOR_NAME has no AUTH as a word.
_SECRET_NAME = re.compile(
    r"SECRET|PASSWORD|PASSPHRASE|TOKEN|CREDENTIAL|API_KEY|PRIVATE_KEY|ACCESS_KEY(?!_ID)"
    r"|(?:^|_)(?:AUTH|PASS|PAT)(?:_|$)"
)
_URL_USER = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#\s]*)@", re.IGNORECASE)
# Hiding shorter values would mask ordinary words of a log.
_SHORTEST_SECRET = 6
# From this length on, the user of a web address with a password is taken for a token.
_SHORTEST_TOKEN = 16


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """Secret values of the environment in all their spellings, longest first."""
    values = {value for name, value in environ.items() if _SECRET_NAME.search(name)}
    for value in environ.values():
        for scheme, login in _URL_USER.findall(value):
            user, _, password = login.partition(":")
            values.add(password)
            # Git servers take a token as the user. A database's user is a name.
            if scheme.lower().endswith(("http", "https")) and (
                not password or len(user) >= _SHORTEST_TOKEN
            ):
                values.add(user)
    # Output is hidden line by line; a private key has many lines.
    values |= {line.strip() for value in values for line in value.splitlines()}
    values |= {spell(value) for value in values for spell in (unquote, _quoted)}
    return sorted((v for v in values if len(v) >= _SHORTEST_SECRET), key=len, reverse=True)


def _quoted(text: str) -> str:
    return quote(text, safe="")


def hide_secrets(text: str, secrets: list[str]) -> str:
    """`text` with every secret replaced."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def hide_user(url: str) -> str:
    """A URL without its user and password."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", url)


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
    stop: threading.Event | None = None,
    timeout_s: float = math.inf,
) -> Ended:
    """Run ``python -m module`` in a folder until it ends; it dies with this process.

    Args:
        module: e.g. ``dvc``.
        *arguments: of the module.
        folder: working directory, e.g. a clone, whose code takes precedence over installed code.
        on_line: called with every line of output, without secrets.
        variables: added to its environment.
        without: prefixes of environment variables to remove.
        stop: the process is killed when this is set.
        timeout_s: seconds after which the process is killed.
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
        if stop is not None or timeout_s < math.inf:
            deadline = time.monotonic() + timeout_s
            watch = (process, stop or threading.Event(), deadline)
            threading.Thread(target=_kill_when, args=watch, daemon=True).start()
        try:
            for line in process.stdout:
                last.append(hide_secrets(line.rstrip("\n"), secrets))
                if on_line is not None:
                    on_line(last[-1])
        except BaseException:  # E.g. if a flow is cancelled.
            process.kill()
            raise
    return Ended(process.returncode, list(last))


def _kill_when(process: subprocess.Popen[str], stop: threading.Event, deadline: float) -> None:
    """Kill a process once `stop` is set or it is past the deadline, unless it has ended."""
    while process.poll() is None:
        if stop.wait(_LOOK_S) or time.monotonic() > deadline:
            process.kill()
            return


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
