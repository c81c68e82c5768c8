"""A server as a local process: started, waited for, found again, stopped; its ports."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.local import guard
from infra.local import process as ports
from mrmodel.errors import MrModelError
from mrmodel.processes import start_ticks

LOG_LINES = 15
_POLL_S = 0.2
# A server must not inherit the addresses of other servers.
_FOREIGN = ("AWS_", "MLFLOW_", "MRMODEL_", "PG", "PREFECT_")


class ServiceError(MrModelError):
    """A local server does not start, died, or its port is in use."""


@dataclass(frozen=True)
class Program:
    """How a server is started and stopped.

    Args:
        name: display name; its log is ``<name>.log``.
        command: the program and its arguments; no secrets, since `ps` shows them to all users.
        folder: of its log.
        ports: of 127.0.0.1, on which it listens.
        healthy: whether it responds as expected.
        environment: variables in addition to those of this process; secrets go here.
        cwd: working directory, if not `folder`.
        stop_signal: requests a clean shutdown.
        patience_s: start-up timeout in seconds.
    """

    name: str
    command: Sequence[str]
    folder: Path
    ports: Sequence[int]
    healthy: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    stop_signal: int = signal.SIGTERM
    patience_s: float = 120.0

    @property
    def log(self) -> Path:
        """Its log file."""
        return self.folder / f"{self.name}.log"

    def start(self, owner: int | None = None) -> Running:
        """Start it, without waiting until it is healthy.

        Args:
            owner: process with which it ends, however that dies; None: it keeps running.

        Raises:
            ServiceError: one of its ports is in use, or it is not installed.
        """
        self.require_ports()
        cwd = self.cwd or self.folder
        for folder in (self.folder, cwd):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log.touch(mode=0o600)
        command, stop_signal = list(self.command), int(self.stop_signal)
        if owner is not None:
            command[:0] = [sys.executable, guard.__file__, str(owner), str(stop_signal)]
            stop_signal = int(signal.SIGTERM)
        try:
            with self.log.open("ab") as log:
                child = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env={**own_environment(), **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C in a terminal is meant for the foreground program.
                    start_new_session=True,
                )
        except FileNotFoundError:
            raise ServiceError(f"{self.name}: no program {command[0]}; see make services") from None
        born = start_ticks(child.pid)
        return Running(self.name, child.pid, born, str(self.log), stop_signal, child)

    def require_ports(self) -> None:
        """Raise ServiceError if one of its ports is in use."""
        for port in self.ports:
            if not ports.is_free(port):
                raise ServiceError(
                    f"{self.name}: port {port} of 127.0.0.1 is taken; "
                    f"--port {self.name}=NUMBER or --free-ports chooses another"
                )

    def wait(self, running: Running) -> None:
        """Return when it is healthy; else raise ServiceError with the end of its log."""
        end = time.monotonic() + self.patience_s
        while time.monotonic() < end:
            if not running.alive():
                raise ServiceError(f"{self.name} ended while it started.\n{running.last_words()}")
            if self.healthy():
                return
            time.sleep(_POLL_S)
        running.stop()
        raise ServiceError(
            f"{self.name} gave no answer within {self.patience_s:.0f} s.\n{running.last_words()}"
        )


@dataclass(frozen=True)
class Running:
    """A server that was started, possibly by another process.

    Args:
        name: as in `Program`.
        pid: its process.
        born: start time in clock ticks since boot, since pids are reused.
        log: its log file.
        stop_signal: as in `Program`.
        child: the process object, if it is a child of this process.
    """

    name: str
    pid: int
    born: int
    log: str
    stop_signal: int
    child: subprocess.Popen[bytes] | None = field(default=None, compare=False, repr=False)

    def record(self) -> dict[str, str | int]:
        """Its fields as JSON; `Running(**record)` restores it in another process."""
        fields = ("name", "pid", "born", "log", "stop_signal")
        return {name: getattr(self, name) for name in fields}

    def alive(self) -> bool:
        """Whether this same process is still running."""
        return start_ticks(self.pid) == self.born

    def stop(self, patience_s: float = 20.0) -> None:
        """Stop it and its children, with SIGKILL after `patience_s`."""
        self._end(self.stop_signal, patience_s)

    def kill(self) -> None:
        """Kill it and its children at once, like a crash."""
        self._end(signal.SIGKILL, 0)

    def _end(self, number: int, patience_s: float) -> None:
        """End the session of this process, unless its pid has been reused."""
        if start_ticks(self.pid) in (self.born, 0):
            guard.end_session(self.pid, self.pid, number, patience_s)
        if self.child is not None:
            self.child.wait()

    def last_words(self) -> str:
        """The last lines of its log, after a line with the log's path."""
        try:
            text = Path(self.log).read_text(errors="replace")
        except OSError:
            text = ""
        lines = text.splitlines()[-LOG_LINES:] or ["(it is empty)"]
        return "\n".join([f"The end of {self.log}:", *(f"  {line}" for line in lines)])


def own_environment() -> dict[str, str]:
    """The environment of this process without the addresses and secrets of servers."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


# Below Linux's ephemeral range: an outgoing connection could take a port between the check and the
# start of the server.
_LOWEST, _HIGHEST = 12_000, 32_000


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        # As servers do: a recently closed connection does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """`count` different free ports, chosen at random, so that parallel tests rarely collide."""
    found: list[int] = []
    # Not the module's seeded generator: processes of one test run would choose equal ports.
    draw = random.SystemRandom()
    while len(found) < count:
        port = draw.randrange(_LOWEST, _HIGHEST)
        if port not in found and is_free(port):
            found.append(port)
    return found
