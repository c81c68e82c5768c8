"""What a stage, or a pipeline, tells of its run, and the process that brings it to MLflow.

A stage writes what it has to say as lines into a file without a name; `mrmodel.track.recorder`
reads them and talks to MLflow. So a stage neither imports MLflow nor waits for its server, and no
server makes a stage fail. ``tracking.enabled: false`` switches all of it off.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import mrmodel
from mrmodel.config import TrackingSettings

log = logging.getLogger(__name__)

# Names the run that the runs of stages belong to; an orchestrated attempt sets it.
PARENT = "MRMODEL_PARENT_RUN"
# The recorder gives up by itself before that, see `recorder`.
_END_PATIENCE_S = 90.0


class RunRecord(Protocol):
    """An open record; nothing that is said to it waits or fails."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Keep `figures` as of `step`."""

    def params(self, tree: Mapping[str, Any]) -> None:
        """Keep parameters; nested sections become dotted names."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Keep facts to search by."""

    def file(self, path: Path) -> None:
        """Keep a copy of a file as it is at the end of the run, under its path."""

    def text(self, name: str, content: str) -> None:
        """Keep a text as a file of that name."""

    def table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Keep a table, which MLflow shows as one; `name` ends in ``.json``."""

    def fail(self, reason: str) -> None:
        """The run shall end as failed although no error was raised."""

    def part(self, name: str) -> AbstractContextManager[RunRecord]:
        """A part of the work with figures of its own: a run below this one.

        What has the name of this run is no part of it, but all of it.
        """

    def run_id(self, patience_s: float) -> str | None:
        """MLflow's id of the run; None: it has none yet after so many seconds."""


class NoRecord:
    """What a stage gets when tracking is off."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Drop the figures."""

    def params(self, tree: Mapping[str, Any]) -> None:
        """Drop them."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Drop them."""

    def file(self, path: Path) -> None:
        """Leave the file where it is."""

    def text(self, name: str, content: str) -> None:
        """Drop it."""

    def table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Drop it."""

    def fail(self, reason: str) -> None:
        """Ignore."""

    def part(self, name: str) -> AbstractContextManager[RunRecord]:
        """Nothing either."""
        return nullcontext(self)

    def run_id(self, patience_s: float) -> str | None:
        """None."""
        return None


@dataclass(frozen=True, slots=True)
class Opening:
    """What the recorder is told first.

    Attributes:
        experiment: name of MLflow's experiment.
        state: folder of the database where no server is configured (``.mrmodel``).
        name: of what is run, unless DVC knows a better one.
        title: of the run, where that is not its name.
        code: repository whose revision the run is of.
        parent: id of the run that it belongs to.
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
    stage: str | None = None
    command: str | None = None
    began: int = field(default_factory=lambda: _now())
    pid: int = field(default_factory=os.getpid)


class SpooledRun:
    """A record on its way to the recorder."""

    def __init__(self, spool: _Spool, name: str, key: int) -> None:
        self._spool, self._name, self._key = spool, name, key
        self.failed: str | None = None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send the figures, with this moment as their time."""
        self._say("log", figures={name: float(value) for name, value in figures.items()}, step=step)

    def params(self, tree: Mapping[str, Any]) -> None:
        """Send parameters."""
        self._say("params", tree=tree)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Send tags."""
        self._say("tags", tags=tags)

    def file(self, path: Path) -> None:
        """Have the file copied when the run ends."""
        self._say("file", path=str(path))

    def text(self, name: str, content: str) -> None:
        """Send the text."""
        self._say("text", name=name, content=content)

    def table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Send the table."""
        self._say("table", name=name, columns={key: list(row) for key, row in columns.items()})

    def fail(self, reason: str) -> None:
        """Remember the reason for the end."""
        self.failed = reason

    @contextmanager
    def part(self, name: str) -> Iterator[RunRecord]:
        """Open a run below this one, or give this one where it has that name."""
        if name == self._name:
            yield self
            return
        part = SpooledRun(self._spool, name, self._spool.next_key())
        part._say("part", name=name, above=self._key)
        with _ending(part):
            yield part

    def run_id(self, patience_s: float) -> str | None:
        """Wait for the id."""
        return self._spool.run_id(patience_s)

    def end(self, status: str) -> None:
        """Say how it ended."""
        if self.failed is not None:
            self.tags({"error": self.failed})
        self._say("end", status=status if self.failed is None else "FAILED")

    def _say(self, kind: str, **values: Any) -> None:
        self._spool.say({"kind": kind, "run": self._key, "at": _now(), **values})


_current: ContextVar[RunRecord] = ContextVar("record")


def current_record() -> RunRecord:
    """The record of the stage that runs here; one that keeps nothing where there is none."""
    return _current.get(NoRecord())


@contextmanager
def open_record(settings: TrackingSettings, opening: Opening) -> Iterator[RunRecord]:
    """A record for the block, which ends as FINISHED, or as FAILED when the block raises.

    Args:
        settings: the `tracking` section.
        opening: what the run is of.
    """
    spool = _start(opening) if settings.enabled else None
    if spool is None:
        yield NoRecord()
        return
    record = SpooledRun(spool, opening.stage or opening.name, 0)
    token = _current.set(record)
    try:
        with _ending(record):
            yield record
    finally:
        _current.reset(token)
        spool.close()


@contextmanager
def _ending(record: SpooledRun) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        record.fail(str(error) or type(error).__name__)
        raise
    except BaseException:
        record.end("KILLED")
        raise
    finally:
        # A run that was killed has ended already; the second end is not listened to.
        record.end("FINISHED")


class _Spool:
    """The file between stage and recorder, and the recorder's process."""

    def __init__(self, opening: Opening) -> None:
        self._keys, self._id, self._broken = 0, b"", False
        with tempfile.NamedTemporaryFile(prefix="mrmodel-record-", suffix=".jsonl") as named:
            # Two handles, so that each has a place of its own; the name goes at once.
            self._lines = os.open(named.name, os.O_WRONLY | os.O_APPEND)
            self.say(asdict(opening))
            self._told, tell = os.pipe()
            try:
                with Path(named.name).open("rb") as lines:
                    self._recorder = subprocess.Popen(
                        [sys.executable, "-m", "mrmodel.track.recorder", str(tell)],
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

    def say(self, message: Mapping[str, Any]) -> None:
        """Append a line; a full disk costs the record, not the stage."""
        if self._broken:
            return
        try:
            os.write(self._lines, (json.dumps(message) + "\n").encode())
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
        try:
            self._recorder.wait(_END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            log.warning("MLflow did not take the whole record of this run in time")
            self._recorder.kill()
            self._recorder.wait()
        os.close(self._told)
        os.close(self._lines)


def _start(opening: Opening) -> _Spool | None:
    try:
        return _Spool(opening)
    except OSError as error:
        log.warning("no record of this run: %s", error)
        return None


def _environment() -> dict[str, str]:
    """This process's code comes first for the recorder too."""
    own = str(Path(mrmodel.__file__).parents[1])
    path = os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def _now() -> int:
    return int(time.time() * 1000)
