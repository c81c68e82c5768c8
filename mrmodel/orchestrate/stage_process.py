"""One attempt at a stage as a subprocess of the flow: started, monitored, and ended with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mrmodel.errors import OrchestrationError
from mrmodel.files import read_json, write_json
from mrmodel.orchestrate.result_store import ExitCode, ShardedStream, StageRequest, StageResult
from mrmodel.processes import hide_secrets, secrets_of
from mrmodel.progress import EVENTS

_SHOWN_LINES = 5
_POLL_S = 0.2


class StageKilled(OrchestrationError):
    """The process of a stage was killed, e.g. out of memory; a retry may help."""


class StageFailed(OrchestrationError):
    """A stage ended with an error of its own; a retry would give the same error."""


class Listener:
    """Callbacks of a flow; does nothing by itself."""

    def line(self, text: str) -> None:
        """Receive a line that the stage printed, without secrets."""

    def event(self, event: dict[str, Any]) -> None:
        """Receive the start of a step, or progress; see `mrmodel.progress.announce`."""


def run_stage_process(
    order: StageRequest, listener: Listener, sharded: ShardedStream | None = None
) -> StageResult:
    """Run one stage in its own process, which dies with this one.

    Args:
        order: the stage.
        listener: called for every line and event, in the calling thread.
        sharded: shards in the result store that the stage merges.

    Raises:
        StageKilled: a signal ended it, or it timed out.
        StageFailed: any other error; the message holds its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="mrmodel-") as name:
        folder = Path(name)
        content = {"order": asdict(order), "sharded": asdict(sharded) if sharded else None}
        write_json(folder / "order.json", content)
        events = folder / "events.jsonl"
        events.touch()
        last: deque[str] = deque(maxlen=_SHOWN_LINES)
        with _guarded("mrmodel.orchestrate.stage_runner", folder / "order.json", events) as process:
            code = _listen(process, events, listener, last, order)
        if code == ExitCode.DONE:
            return StageResult(**read_json(folder / "result.json"))
        if code == ExitCode.KILLED or code > 128:
            raise StageKilled(f"{order.stage}: its process was killed")
        raise StageFailed(_reason(order.stage, folder / "error.json", last))


def _listen(
    process: subprocess.Popen[str],
    events: Path,
    listener: Listener,
    last: deque[str],
    order: StageRequest,
) -> int:
    """Forward lines and events until the process ends; returns its exit code."""
    lines: deque[str] = deque()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    secrets, started, unfinished = secrets_of(os.environ), time.monotonic(), ""
    with events.open(encoding="utf-8") as file:
        while True:
            ended = process.poll() is not None
            if ended:
                reader.join()
            *events_read, unfinished = (unfinished + file.read()).split("\n")
            for text in events_read:
                listener.event(json.loads(text))
            while lines:
                last.append(hide_secrets(lines.popleft(), secrets))
                listener.line(last[-1])
            if ended:
                return process.returncode
            if order.timeout_s is not None and time.monotonic() - started > order.timeout_s:
                rule = f"ran longer than orchestrate.stage_timeout_s = {order.timeout_s:g}"
                raise StageFailed(f"{order.stage}: {rule}")
            time.sleep(_POLL_S)


def _read(process: subprocess.Popen[str], lines: deque[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        # A progress bar overwrites its line; keep what it last showed.
        lines.append(line.rstrip("\n").rpartition("\r")[2])


@contextmanager
def _guarded(module: str, argument: Path, events: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a Python module under `mrmodel.processes`; leaving the block kills its children too."""
    process = subprocess.Popen(
        [*_PYTHON, "mrmodel.processes", *_PYTHON, module, str(argument)],
        env={**os.environ, EVENTS: str(events), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait()
        process.stdout.close()


_PYTHON = (sys.executable, "-m")


def _reason(stage: str, error: Path, last: deque[str]) -> str:
    said = read_json(error)["message"] if error.exists() else ""
    hidden = hide_secrets(said, secrets_of(os.environ))
    return "\n".join([f"{stage}: {hidden}", *(f"  {line}" for line in last)])
