"""Two ways to run a stage: on a worker of its pool, or in this process."""

from __future__ import annotations

import time
from dataclasses import asdict
from itertools import count
from typing import Any
from uuid import UUID

import click
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import FlowRun
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.states import Crashed

from flows.stages import run_stage
from mrmodel.errors import MrModelError
from mrmodel.orchestrate.result_store import ResultStore, StageResult
from mrmodel.orchestrate.scheduler import ScheduledStage, StageOutcome

POLL_S = 2.0
_LATE_S = 60.0


class Watch:
    """Polls a flow run until it ends.

    A run that a worker submitted but did not start is marked as crashed; if no worker picks one up,
    a warning is logged.

    Args:
        flow_run: its id.
        client: of the server.
        pool: its work pool, for the warning.
        start_timeout_s: maximum time between submission and start.
    """

    def __init__(
        self, flow_run: UUID, client: SyncPrefectClient, pool: str, start_timeout_s: float
    ) -> None:
        self.flow_run = flow_run
        self._client, self._pool, self._start_timeout_s = client, pool, start_timeout_s
        self._began, self._told = time.monotonic(), False
        self._pending_since: float | None = None

    def look(self) -> State[Any] | None:
        """The final state; None: it is not final yet."""
        state = self._client.read_flow_run(self.flow_run).state
        assert state is not None
        if state.is_final():
            return state
        now = time.monotonic()
        self._pending_since = (self._pending_since or now) if state.is_pending() else None
        pending_s = now - (self._pending_since or now)
        if pending_s > self._start_timeout_s:
            lost: State[Any] = Crashed(
                message=f"submitted to a worker, but not started within {self._start_timeout_s:g} s"
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
        """Wait for the final state."""
        while (state := self.look()) is None:
            time.sleep(POLL_S)
        return state


@task(cache_policy=NO_CACHE)
def run_stage_here(scheduled: ScheduledStage) -> StageOutcome:
    """Run the stage's flow in this process; the stage itself is still a child process."""
    state: State[Any] = run_stage(**asdict(scheduled.order), return_state=True)
    if not state.is_completed():
        return outcome_of(state)
    result: StageResult = state.result()
    return StageOutcome(result=result)


@task(cache_policy=NO_CACHE)
def run_stage_on_pool(
    scheduled: ScheduledStage, result_store: ResultStore, start_timeout_s: float
) -> StageOutcome:
    """Run the stage on a worker of its pool; the result is passed through the result store.

    If an equal stage is already running, started by an orchestration that has died, it is awaited
    instead of run twice.
    """
    with get_client(sync_client=True) as client:
        flow_run = start_flow_run(scheduled)
        state = Watch(flow_run.id, client, scheduled.pool, start_timeout_s).wait()
    if not state.is_completed():
        return outcome_of(state)
    result = result_store.find(scheduled.order.stage, scheduled.key)
    if result is None:
        return StageOutcome(reason="ended without a record in the result store", retryable=True)
    return StageOutcome(result=result)


def start_flow_run(scheduled: ScheduledStage) -> FlowRun:
    """Start the flow run of a stage in its pool, or reuse a running one with equal inputs."""
    for attempt in count():
        flow_run: FlowRun = run_deployment(  # type: ignore[assignment]
            f"run-stage/{scheduled.pool}",
            parameters=asdict(scheduled.order),
            idempotency_key=f"{scheduled.order.stage}:{scheduled.key}:{attempt}",
            timeout=0,
        )
        if flow_run.state is None or not flow_run.state.is_final():
            return flow_run
    raise AssertionError("unreachable")


def outcome_of(state: State[Any]) -> StageOutcome:
    """Convert a final state other than Completed to the stage's outcome."""
    return StageOutcome(reason=state.message or state.name or "", retryable=state.is_crashed())


def require_completed(state: State[Any]) -> None:
    """Check the end of a flow that a command ran.

    Raises:
        MrModelError: the user's mistake that ended it.
        click.ClickException: it failed for another reason, such as a failed stage.
    """
    if state.is_completed():
        return
    error = state.result(raise_on_failure=False)
    if isinstance(error, MrModelError):
        raise error
    raise click.ClickException(state.message or str(state.name))
