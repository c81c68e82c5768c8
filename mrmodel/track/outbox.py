"""What is on its way to MLflow: sent in order, kept while the server is away."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
# Of HTTP: the request itself is wrong, and will be so the next time; but for these two.
_WRONG, _BROKEN = 400, 500
_PASSING = (408, 429)
# MLflow passes on what these raise when the other side does not answer.
_LIBRARIES = ("boto3", "botocore", "sqlalchemy", "urllib3")


class Refused(Exception):
    """The server wants nothing of this record."""


class Outbox:
    """Messages in order; `push` never waits for a server longer than for one request."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, Callable[[], None]]] = deque()
        self._pause_s, self._next_try = 0.0, 0.0
        self._failing_since: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def failing_s(self) -> float:
        """Seconds since which every try has failed."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    def put(self, what: str, send: Callable[[], None]) -> None:
        """Add a message.

        Args:
            what: for the log.
            send: sends it; may be called again when it raised.
        """
        self._waiting.append((what, send))

    def push(self) -> None:
        """Send what is waiting, unless the server did not answer a moment ago.

        Raises:
            Refused: a message said that no other will be taken either.
        """
        while self._waiting and time.monotonic() >= self._next_try:
            what, send = self._waiting[0]
            try:
                send()
            except Refused:
                raise
            except Exception as error:
                if not may_pass(error):
                    log.warning("not in MLflow: %s: %s", what, error)
                    self._waiting.popleft()
                    continue
                self._failed(what, error)
            else:
                self._waiting.popleft()
                self._pause_s, self._failing_since = 0.0, None

    def hurry(self) -> None:
        """Let the next `push` try at once."""
        self._next_try = 0.0

    def _failed(self, what: str, error: Exception) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            log.warning("MLflow does not take %s: %s", what, error)
        self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self._next_try = time.monotonic() + self._pause_s


def may_pass(error: Exception) -> bool:
    """Whether the same message may be taken later: the server or the way to it is at fault."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status in _PASSING or not _WRONG <= status < _BROKEN
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return type(error).__module__.partition(".")[0] in _LIBRARIES
