"""A flow run on a work pool, looked at from the orchestration that started it."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.states import Crashed

POLL_S = 2.0
_LATE_S = 60.0


class Watch:
    """Waits for the end of a flow run, one look at a time.

    A run that a worker took and did not begin is declared crashed; that no worker takes one is
    told.

    Args:
        flow_run: its id.
        client: of the server.
        pool: its work pool, for the message.
        start_timeout_s: so long may a worker take to begin.
    """

    def __init__(
        self, flow_run: UUID, client: SyncPrefectClient, pool: str, start_timeout_s: float
    ) -> None:
        self.flow_run = flow_run
        self._client, self._pool, self._start_timeout_s = client, pool, start_timeout_s
        self._began, self._told = time.monotonic(), False
        self._pending_since: float | None = None

    def look(self) -> State[Any] | None:
        """The final state; None: it has none yet."""
        state = self._client.read_flow_run(self.flow_run).state
        assert state is not None
        if state.is_final():
            return state
        now = time.monotonic()
        self._pending_since = (self._pending_since or now) if state.is_pending() else None
        pending_s = now - (self._pending_since or now)
        if pending_s > self._start_timeout_s:
            lost: State[Any] = Crashed(
                message=f"taken by a worker, but not begun in {self._start_timeout_s:g} s"
            )
            self._client.set_flow_run_state(self.flow_run, lost, force=True)
        elif state.is_scheduled() and not self._told and now - self._began > _LATE_S:
            pool = self._pool
            get_run_logger().warning(
                "no worker has taken it yet: prefect worker start --pool %s", pool
            )
            self._told = True
        return None

    def wait(self) -> State[Any]:
        """The final state."""
        while (state := self.look()) is None:
            time.sleep(POLL_S)
        return state
