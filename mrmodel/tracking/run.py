"""What a stage, or a pipeline, tells of its run, and the process that brings it to MLflow.

A stage writes lines into an unnamed temporary file; `mrmodel.tracking.mlflow_worker` reads them
and talks to MLflow. So a stage neither imports MLflow nor waits for its server, and no
server makes a stage fail. ``tracking.enabled: false`` switches all of it off.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from mrmodel.config.schema import TrackingSettings
from mrmodel.errors import StoppedEarly
from mrmodel.tracking.event_log import EventLog, RunSpec, now

log = logging.getLogger(__name__)

# Names the run that the runs of stages belong to; an orchestrated attempt sets it.
PARENT = "MRMODEL_PARENT_RUN"


class TrackedRun(Protocol):
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

    def child_run(self, name: str) -> AbstractContextManager[TrackedRun]:
        """A part of the work with figures of its own: a run below this one.

        What has the name of this run is no part of it, but all of it.
        """

    def run_id(self, patience_s: float) -> str | None:
        """MLflow's id of the run; None: it has none yet after so many seconds."""


class NullRun:
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

    def child_run(self, name: str) -> AbstractContextManager[TrackedRun]:
        """Nothing either."""
        return nullcontext(self)

    def run_id(self, patience_s: float) -> str | None:
        """None."""
        return None


class EventLogRun:
    """A record on its way to the recorder."""

    def __init__(self, spool: EventLog, name: str, key: int) -> None:
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
    def child_run(self, name: str) -> Iterator[TrackedRun]:
        """Open a run below this one, or give this one where it has that name."""
        if name == self._name:
            yield self
            return
        child_run = EventLogRun(self._spool, name, self._spool.next_key())
        child_run._say("part", name=name, above=self._key)
        with _ending(child_run):
            yield child_run

    def run_id(self, patience_s: float) -> str | None:
        """Wait for the id."""
        return self._spool.run_id(patience_s)

    def end(self, status: str) -> None:
        """Say how it ended."""
        if self.failed is not None:
            self.tags({"error": self.failed})
        self._say("end", status=status if self.failed is None else "FAILED")

    def _say(self, kind: str, **values: Any) -> None:
        self._spool.emit({"kind": kind, "run": self._key, "at": now(), **values})


_current: ContextVar[TrackedRun] = ContextVar("record")


def current_run() -> TrackedRun:
    """The record of the stage that runs here; one that keeps nothing where there is none."""
    return _current.get(NullRun())


@contextmanager
def open_run(settings: TrackingSettings, spec: RunSpec) -> Iterator[TrackedRun]:
    """A record for the block, which ends as FINISHED, or as FAILED when the block raises.

    Args:
        settings: the `tracking` section.
        spec: what the run is of.
    """
    spool = _start(spec) if settings.enabled else None
    if spool is None:
        yield NullRun()
        return
    record = EventLogRun(spool, spec.stage or spec.name, 0)
    token = _current.set(record)
    try:
        with _ending(record):
            yield record
    finally:
        _current.reset(token)
        spool.close()


@contextmanager
def _ending(record: EventLogRun) -> Iterator[None]:
    try:
        yield
    except StoppedEarly as error:
        record.tags({"stopped": str(error)})
        raise
    except Exception as error:
        record.fail(str(error) or type(error).__name__)
        raise
    except BaseException:
        record.end("KILLED")
        raise
    finally:
        # A run that was killed has ended already; the second end is not listened to.
        record.end("FINISHED")


def _start(spec: RunSpec) -> EventLog | None:
    try:
        return EventLog(spec)
    except OSError as error:
        log.warning("no record of this run: %s", error)
        return None
