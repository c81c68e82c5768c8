"""The event log that a process writes about its run, and the MLflow worker that reads it."""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mrmodel.version import PACKAGE

log = logging.getLogger(__name__)

# The worker gives up by itself before that, see `mlflow_worker`.
_END_PATIENCE_S = 90.0


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The first line of the event log.

    Attributes:
        experiment: name of the MLflow experiment.
        state: folder of the database where no server is configured (``.mrmodel``).
        name: of the process or stage, unless DVC provides the stage name.
        title: name of the run, if it differs.
        code: repository whose revision is recorded.
        parent: id of the parent run.
        join: id of another process's run, to which child runs are added; no own run is created.
        stage: name of the stage in DVC; None: not started by DVC.
        command: of the stage; None: the run is not of a stage.
        began: milliseconds since 1970.
        pid: of the process that the run tracks.
    """

    experiment: str
    state: str
    name: str
    code: str
    title: str | None = None
    parent: str | None = None
    join: str | None = None
    stage: str | None = None
    command: str | None = None
    began: int = field(default_factory=lambda: now())
    pid: int = field(default_factory=os.getpid)


class EventLog:
    """An unnamed file of events, and the worker process that reads it.

    Args:
        spec: the first line.

    Raises:
        OSError: the file or the process cannot be created.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._keys, self._id, self._broken = 0, b"", False
        with tempfile.NamedTemporaryFile(prefix="mrmodel-record-", suffix=".jsonl") as named:
            # Two handles with separate positions; the name is removed at once.
            self._lines = os.open(named.name, os.O_WRONLY | os.O_APPEND)
            self.emit(asdict(spec))
            self._run_id_pipe, run_id_writer = os.pipe()
            try:
                with Path(named.name).open("rb") as lines:
                    self._worker = subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "mrmodel.tracking.mlflow_worker",
                            str(run_id_writer),
                        ],
                        env=_environment(),
                        stdin=lines,
                        stdout=subprocess.DEVNULL,
                        pass_fds=(run_id_writer,),
                        # Ctrl-C goes to the stage only, which reports how it ended.
                        start_new_session=True,
                    )
            finally:
                os.close(run_id_writer)

    def next_key(self) -> int:
        """Number of a new child run."""
        self._keys += 1
        return self._keys

    def emit(self, message: Mapping[str, Any]) -> None:
        """Append a line; if the disk is full, tracking stops but the stage continues."""
        if self._broken:
            return
        try:
            line = json.dumps(message, default=str, allow_nan=False) + "\n"
        except ValueError:
            log.warning("not in the record of this run, a number is not finite: %s", message)
            return
        try:
            os.write(self._lines, line.encode())
        except OSError as error:
            self._broken = True
            log.warning("the record of this run ends here: %s", error)

    def run_id(self, patience_s: float) -> str | None:
        """The run id received from the worker."""
        if not self._id:
            ready, _, _ = select.select([self._run_id_pipe], [], [], patience_s)
            self._id = os.read(self._run_id_pipe, 100) if ready else b""
        return self._id.decode() or None

    def close(self) -> None:
        """Wait until everything is sent or given up."""
        if self._broken:  # It would wait for an end event that cannot be written.
            self._worker.kill()
        try:
            self._worker.wait(_END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            log.warning("MLflow did not take the whole record of this run in time")
            self._worker.kill()
            self._worker.wait()
        os.close(self._run_id_pipe)
        os.close(self._lines)


def _environment() -> dict[str, str]:
    """This process's environment, with its code first on the worker's path."""
    own = str(PACKAGE.parent)
    path = os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
