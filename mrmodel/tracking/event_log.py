"""What a process says of its run on its way to the recorder, and the recorder's process."""

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

import mrmodel

log = logging.getLogger(__name__)

# The recorder gives up by itself before that, see `recorder`.
_END_PATIENCE_S = 90.0


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What the recorder is told first.

    Attributes:
        experiment: name of MLflow's experiment.
        state: folder of the database where no server is configured (``.mrmodel``).
        name: of what is run, unless DVC knows a better one.
        title: of the run, where that is not its name.
        code: repository whose revision the run is of.
        parent: id of the run that it belongs to.
        join: id of another process's run whose parts this process adds to; it has none of its own.
        stage: name by which DVC knows the stage; None: it runs by hand.
        command: of the stage; None: the run is of no stage.
        began: milliseconds since 1970.
        pid: of the process whose run it is.
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
    """A file without a name, and the process that reads it.

    Args:
        opening: the first line.

    Raises:
        OSError: no file, or no process, can be had.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._keys, self._id, self._broken = 0, b"", False
        with tempfile.NamedTemporaryFile(prefix="mrmodel-record-", suffix=".jsonl") as named:
            # Two handles, so that each has a place of its own; the name goes at once.
            self._lines = os.open(named.name, os.O_WRONLY | os.O_APPEND)
            self.emit(asdict(spec))
            self._told, tell = os.pipe()
            try:
                with Path(named.name).open("rb") as lines:
                    self._recorder = subprocess.Popen(
                        [sys.executable, "-m", "mrmodel.tracking.mlflow_worker", str(tell)],
                        env=_environment(),
                        stdin=lines,
                        stdout=subprocess.DEVNULL,
                        pass_fds=(tell,),
                        # A Ctrl-C is for the stage, which says how it ended.
                        start_new_session=True,
                    )
            finally:
                os.close(tell)

    def next_key(self) -> int:
        """Number of a further run."""
        self._keys += 1
        return self._keys

    def emit(self, message: Mapping[str, Any]) -> None:
        """Append a line; a full disk costs the record, not the stage."""
        if self._broken:
            return
        try:
            os.write(self._lines, (json.dumps(message, default=str) + "\n").encode())
        except OSError as error:
            self._broken = True
            log.warning("the record of this run ends here: %s", error)

    def run_id(self, patience_s: float) -> str | None:
        """The id that the recorder has told."""
        if not self._id:
            ready, _, _ = select.select([self._told], [], [], patience_s)
            self._id = os.read(self._told, 100) if ready else b""
        return self._id.decode() or None

    def close(self) -> None:
        """Wait until all is sent or given up."""
        if self._broken:  # It would wait for an end that cannot be told.
            self._recorder.kill()
        try:
            self._recorder.wait(_END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            log.warning("MLflow did not take the whole record of this run in time")
            self._recorder.kill()
            self._recorder.wait()
        os.close(self._told)
        os.close(self._lines)


def _environment() -> dict[str, str]:
    """This process's code comes first for the recorder too."""
    own = str(Path(mrmodel.__file__).parents[1])
    path = os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
