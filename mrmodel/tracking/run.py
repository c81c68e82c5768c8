"""Tracking API of a stage or a pipeline, backed by a worker process that talks to MLflow.

A stage writes events into an unnamed temporary file; `mrmodel.tracking.mlflow_worker` reads them
and talks to MLflow. So a stage neither imports MLflow nor waits for its server, and no server error
makes a stage fail. ``tracking.enabled: false`` switches all of it off.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from mrmodel.config.schema import TrackingSettings
from mrmodel.errors import StoppedEarly
from mrmodel.tracking.event_log import EventLog, RunSpec, now

log = logging.getLogger(__name__)

# Parent run of the runs of stages; set for stages of an orchestrated run.
PARENT = "MRMODEL_PARENT_RUN"
# MLflow's import and a new database take seconds.
PATIENCE_S = 30.0


class TrackedRun:
    """An open run; its methods neither block nor fail.

    This class itself logs nothing: it is the run where tracking is off.
    """

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log `metrics` at `step`."""

    def params(self, tree: Mapping[str, Any]) -> None:
        """Log parameters; nested sections become dotted names."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""

    def file(self, path: Path) -> None:
        """Log a file as it is at the end of the run, under its path."""

    def text(self, name: str, content: str) -> None:
        """Log a text as a file of that name."""

    def table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Log a table for MLflow's table view; `name` ends in ``.json``."""

    def fail(self, reason: str) -> None:
        """Mark the run as failed although no error was raised."""

    def child_run(self, name: str) -> AbstractContextManager[TrackedRun]:
        """A child run with metrics of its own.

        With the name of this run, it is this run itself.
        """
        return nullcontext(self)

    def run_id(self, patience_s: float = PATIENCE_S) -> str | None:
        """MLflow's id of the run; None: it has none yet after `patience_s` seconds."""
        return None


class EventLogRun(TrackedRun):
    """A run that writes to an event log."""

    def __init__(self, event_log: EventLog, name: str, key: int) -> None:
        self._event_log, self._name, self._key = event_log, name, key
        self.failed: str | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics with the current time."""
        self._emit(
            "log", metrics={name: float(value) for name, value in metrics.items()}, step=step
        )

    def params(self, tree: Mapping[str, Any]) -> None:
        """Log parameters."""
        self._emit("params", tree=tree)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._emit("tags", tags=tags)

    def file(self, path: Path) -> None:
        """Log a file when the run ends."""
        self._emit("file", path=str(path))

    def text(self, name: str, content: str) -> None:
        """Log a text."""
        self._emit("text", name=name, content=content)

    def table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Log a table."""
        self._emit("table", name=name, columns={key: list(row) for key, row in columns.items()})

    def fail(self, reason: str) -> None:
        """Mark the run as failed."""
        self.failed = reason

    @contextmanager
    def child_run(self, name: str) -> Iterator[TrackedRun]:
        """A child run, or this run if it has that name."""
        if name == self._name:
            yield self
            return
        child_run = EventLogRun(self._event_log, name, self._event_log.next_key())
        child_run._emit("part", name=name, above=self._key)
        with _ending(child_run):
            yield child_run

    def run_id(self, patience_s: float = PATIENCE_S) -> str | None:
        """Wait for the run id."""
        return self._event_log.run_id(patience_s)

    def end(self, status: str) -> None:
        """Log the final status."""
        if self.failed is not None:
            self.tags({"error": self.failed})
        self._emit("end", status=status if self.failed is None else "FAILED")

    def _emit(self, kind: str, **values: Any) -> None:
        self._event_log.emit({"kind": kind, "run": self._key, "at": now(), **values})


_current: ContextVar[TrackedRun] = ContextVar("record")


def current_run() -> TrackedRun:
    """The run of the current stage; one that logs nothing if there is none."""
    return _current.get(TrackedRun())


@contextmanager
def open_run(settings: TrackingSettings, spec: RunSpec) -> Iterator[TrackedRun]:
    """A run for the block, which ends as FINISHED, or as FAILED when the block raises.

    Args:
        settings: the `tracking` section.
        spec: the run spec.
    """
    event_log = _start(spec) if settings.enabled else None
    if event_log is None:
        yield TrackedRun()
        return
    record = EventLogRun(event_log, spec.stage or spec.name, 0)
    token = _current.set(record)
    try:
        with _ending(record):
            yield record
    finally:
        _current.reset(token)
        event_log.close()


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
        # A killed run has already been ended; a second end event is ignored.
        record.end("FINISHED")


def _start(spec: RunSpec) -> EventLog | None:
    try:
        return EventLog(spec)
    except OSError as error:
        log.warning("no record of this run: %s", error)
        return None
