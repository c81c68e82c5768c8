"""Progress reporting: one small interface, so that library code never prints."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mrmodel.text import four_digits

T = TypeVar("T")

# Path of a JSON Lines file of events; set by the orchestration for stages.
EVENTS = "MRMODEL_EVENTS"
# Minimum seconds between two events of a task.
_EVENT_INTERVAL_S = 1.0


class Reporter(Protocol):
    """Interface of progress reporting."""

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Start a task of `total` steps, `done` of which were completed by an earlier run."""

    def advance(self, steps: int = 1, **info: object) -> None:
        """Report `steps` more steps as done; `info` is shown next to the bar (loss, speed ...)."""

    def finish(self) -> None:
        """End the task."""


class NullReporter:
    """Reports nothing."""

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Ignore."""

    def advance(self, steps: int = 1, **info: object) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""


class RichReporter:
    """A progress bar on a terminal, otherwise one line per 10 % of the work.

    Both show an ETA, unless it is switched off because steps differ too much.
    """

    def __init__(self, console: Console | None = None, *, with_eta: bool = True) -> None:
        self._console, self._with_eta = console or Console(file=sys.stderr), with_eta
        self._progress: Progress | None = None
        self._name, self._total, self._done, self._shown = "", 0, 0, -1
        self._began_s, self._before = 0.0, 0

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Show a new bar."""
        self._name, self._total, self._done, self._shown = name, total, done, -1
        self._began_s, self._before = time.monotonic(), done
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[info]}"),
                console=self._console,
            )
            self._progress.add_task(name, total=total, completed=done, info="")
            self._progress.start()

    def advance(self, steps: int = 1, **info: object) -> None:
        """Move the bar."""
        self._done += steps
        text = " ".join(f"{key} {four_digits(value)}" for key, value in info.items())
        if self._progress is not None:
            line = f"{self._rest()}{text}"
            self._progress.update(self._progress.task_ids[0], advance=steps, info=line)
            return
        tenth = self._done * 10 // max(self._total, 1)
        if tenth > self._shown:
            self._shown = tenth
            line = f"{self._name}: {self._done}/{self._total} {self._rest()}{text}"
            self._console.print(line.rstrip())

    def _rest(self) -> str:
        done, left = self._done - self._before, self._total - self._done
        if not self._with_eta or not done or left <= 0:
            return ""
        left_s = (time.monotonic() - self._began_s) / done * left
        return f"eta {timedelta(seconds=round(left_s))} "

    def finish(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class EventReporter:
    """Emits progress events to the process that started this one, and wraps another reporter."""

    def __init__(self, shown: Reporter) -> None:
        self._shown = shown
        self._name, self._total, self._done, self._told_at = "", 0, 0, 0.0

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Emit the start."""
        self._shown.start(name, total, done)
        self._name, self._total, self._done, self._told_at = name, total, done, 0.0
        self._tell()

    def advance(self, steps: int = 1, **info: object) -> None:
        """Emit the progress, at most once per second."""
        self._shown.advance(steps, **info)
        self._done += steps
        if time.monotonic() - self._told_at >= _EVENT_INTERVAL_S:
            self._tell()

    def finish(self) -> None:
        """Emit the final state."""
        self._shown.finish()
        self._tell()

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        announce("progress", name=self._name, done=self._done, total=self._total)


def announce(event: str, **values: object) -> None:
    """Append an event to the file in the environment variable `EVENTS`, if it is set."""
    path = os.environ.get(EVENTS)
    if path:
        line = json.dumps({"event": event, "at": time.time(), **values}, allow_nan=False) + "\n"
        # A single write per line, because several processes may write to the file.
        with Path(path).open("ab", buffering=0) as file:
            file.write(line.encode())


class Steps:
    """The steps of a command, each named when it begins.

    A context manager: ``with Steps(reporter, "register", 2) as steps: steps.begin("scoring") ...``.
    """

    def __init__(self, reporter: Reporter | None, name: str, total: int) -> None:
        """Prepare `total` steps; `reporter` None shows nothing."""
        self._reporter, self._name, self._total = reporter or NullReporter(), name, total
        self._begun = 0

    def __enter__(self) -> Steps:
        self._reporter.start(self._name, self._total)
        return self

    def begin(self, step: str) -> None:
        """Begin the step `step`; the previous one is done."""
        self._reporter.advance(min(self._begun, 1), now=step)
        self._begun += 1

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:  # Skipped steps count as done.
            self._reporter.advance(self._total - max(self._begun - 1, 0))
        self._reporter.finish()


def track(items: Iterable[T], reporter: Reporter, name: str, total: int) -> Iterator[T]:
    """Iterate over `items`, reporting one step per item."""
    reporter.start(name, total)
    try:
        for item in items:
            yield item
            reporter.advance()
    finally:
        reporter.finish()
