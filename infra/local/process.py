"""A server as a process of this machine: started, waited for, found again, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from infra.local import guard, ports
from mrmodel.errors import MrModelError

LOG_LINES = 15
_POLL_S = 0.2
# A server must not find the address of another one in the environment of who starts it.
_FOREIGN = ("AWS_", "MLFLOW_", "MRMODEL_", "PG", "PREFECT_")


class ServiceError(MrModelError):
    """A local server does not start, died, or finds its port taken."""


@dataclass(frozen=True)
class Program:
    """How a server is started and stopped.

    Args:
        name: what people call it; its log is ``<name>.log``.
        command: the program and its arguments; no secret among them, `ps` shows them to everybody.
        folder: where it runs, and where its log lies.
        ports: those of 127.0.0.1 that it listens on.
        healthy: whether it answers as it should; may raise OSError while it does not.
        environment: variables beside those of this process; secrets go here.
        stop_signal: asks it to stop in order.
        patience_s: seconds that a start may take.
    """

    name: str
    command: Sequence[str]
    folder: Path
    ports: Sequence[int]
    healthy: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: int = signal.SIGTERM
    patience_s: float = 120.0

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder / f"{self.name}.log"

    def start(self, tied: bool) -> Running:
        """Start it, without waiting until it answers.

        Args:
            tied: it ends when this process does, however that dies; else it stays.

        Raises:
            ServiceError: one of its ports is taken.
        """
        for port in self.ports:
            if not ports.is_free(port):
                raise ServiceError(f"{self.name}: port {port} of 127.0.0.1 is taken")
        self.folder.mkdir(parents=True, exist_ok=True)
        command = list(self.command)
        if tied:
            command[:0] = [sys.executable, guard.__file__, str(os.getpid()), str(self.stop_signal)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**_own_environment(), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # The Ctrl-C of a terminal is meant for the program in front.
                start_new_session=True,
            )
        stop_signal = signal.SIGTERM if tied else self.stop_signal
        born = psutil.Process(process.pid).create_time()
        return Running(self.name, process.pid, born, str(self.log), int(stop_signal), process)

    def wait(self, running: Running) -> None:
        """Return when it answers; raise ServiceError, with the end of its log, when it does not."""
        end = time.monotonic() + self.patience_s
        while time.monotonic() < end:
            if not running.alive():
                raise ServiceError(f"{self.name} ended while it started.\n{running.last_words()}")
            try:
                if self.healthy():
                    return
            except OSError:
                pass
            time.sleep(_POLL_S)
        running.stop()
        raise ServiceError(
            f"{self.name} gave no answer within {self.patience_s:.0f} s.\n{running.last_words()}"
        )


@dataclass(frozen=True)
class Running:
    """A server that was started, perhaps by another process.

    Args:
        name: as in `Program`.
        pid: its process.
        born: when that started, seconds since the epoch: pids are used again.
        log: its log file.
        stop_signal: as in `Program`.
        child: keeps the process known to Python where it is a child of this one.
    """

    name: str
    pid: int
    born: float
    log: str
    stop_signal: int
    child: subprocess.Popen[bytes] | None = field(default=None, compare=False, repr=False)

    def alive(self) -> bool:
        """Whether this very process still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.born) < 1
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def stop(self, patience_s: float = 20.0) -> None:
        """End it and its children: in order, and by force after `patience_s`."""
        self._end(self.stop_signal, patience_s)

    def kill(self) -> None:
        """End it and its children at once, as a crash would."""
        self._end(signal.SIGKILL, 0)

    def _end(self, number: int, patience_s: float) -> None:
        """End the session of this process, unless its number belongs to another one by now."""
        if self.alive() or not psutil.pid_exists(self.pid):
            guard.end_session(self.pid, self.pid, number, patience_s)
        if self.child is not None:
            self.child.wait()

    def last_words(self) -> str:
        """The last lines of its log, under a line that says where it lies."""
        try:
            text = Path(self.log).read_text(errors="replace")
        except OSError:
            text = ""
        lines = text.splitlines()[-LOG_LINES:] or ["(it is empty)"]
        return "\n".join([f"The end of {self.log}:", *(f"  {line}" for line in lines)])


def _own_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
