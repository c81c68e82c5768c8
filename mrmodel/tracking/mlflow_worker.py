"""``python -m mrmodel.tracking.mlflow_worker FD``: sends a stage's events to MLflow.

Standard input is the stage's event log (`mrmodel.tracking.event_log`), whose first line is the
`RunSpec`; the run id is written to the file descriptor FD. While the server is unreachable, events
are kept and retried. The worker ends soon after the stage: when everything is sent, or after some
seconds of failures only; if the stage was killed, within seconds, and the run is marked KILLED.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from typing import Any, TextIO

from mrmodel.processes import die_with_parent
from mrmodel.tracking.event_log import RunSpec
from mrmodel.tracking.mlflow_events import EventHandler, RequestRefused

log = logging.getLogger(__name__)

_POLL_S = 0.1
# At the end of the stage, a server unreachable for this long is not waited for.
_PATIENCE_S = 15.0
# Limit after a stage that was killed.
_LAST_S = 5
_SHORT = {
    # The outbox retries by itself; one request must not block for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "AWS_MAX_ATTEMPTS": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class _Lines:
    """Complete lines of a growing file."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._rest = file, ""

    def new(self) -> list[dict[str, Any]]:
        """Events since the last call."""
        *whole, self._rest = (self._rest + self._file.read()).split("\n")
        return [json.loads(line) for line in whole]


def _follow(events: EventHandler, lines: _Lines, spec: RunSpec) -> None:
    """Send events until the stage has ended and all are sent, or cannot be."""
    while True:
        orphan = os.getppid() != spec.pid
        for message in lines.new():
            events.handle(message)
        if orphan and not events.ended:
            signal.alarm(_LAST_S)
            events.killed()
        events.sample()
        events.outbox.push()
        if events.ended:
            if not events.outbox:
                return
            if events.outbox.failing_s > _PATIENCE_S:
                log.warning("MLflow does not answer; this run's record is incomplete")
                return
        time.sleep(_POLL_S)


def main() -> int:
    """Follow the stage to its end."""
    stage = os.getppid()

    def on_signal(*_: object) -> None:
        """The kernel also signals when only the thread that started this process has ended."""
        if os.getppid() != stage:
            signal.alarm(_LAST_S)

    signal.signal(signal.SIGUSR1, on_signal)
    die_with_parent(signal.SIGUSR1)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.update(_SHORT)
    lines = _Lines(sys.stdin)
    first, *rest = lines.new()
    spec = RunSpec(**first)
    events = EventHandler(spec, int(sys.argv[1]))
    for message in rest:
        events.handle(message)
    try:
        _follow(events, lines, spec)
    except RequestRefused as error:
        log.warning("%s", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
