"""Two ways to have a stage run: on a worker of its pool, or below this process."""

from __future__ import annotations

from dataclasses import asdict
from itertools import count
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas import FlowRun
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment

from flows.stages import run_stage
from flows.watch import Watch
from mrmodel.orchestrate.results import Handover, StageResult
from mrmodel.orchestrate.walk import Dispatch, Ending


@task(cache_policy=NO_CACHE)
def run_stage_here(dispatch: Dispatch) -> Ending:
    """Run the stage's flow in this process; the stage itself is a child process all the same."""
    state: State[Any] = run_stage(**asdict(dispatch.order), return_state=True)
    if not state.is_completed():
        return ending_of(state)
    result: StageResult = state.result()
    return Ending(result=result)


@task(cache_policy=NO_CACHE)
def run_stage_on_pool(dispatch: Dispatch, handover: Handover, start_timeout_s: float) -> Ending:
    """Have a worker of the stage's pool run it; the record comes through the hand-over store.

    An equal stage that already runs, started by an orchestration that has died since, is waited
    for instead of run twice.
    """
    with get_client(sync_client=True) as client:
        flow_run = start_flow_run(dispatch)
        state = Watch(flow_run.id, client, dispatch.pool, start_timeout_s).wait()
    if not state.is_completed():
        return ending_of(state)
    result = handover.find(dispatch.order.stage, dispatch.key)
    if result is None:
        return Ending(reason="ended without a record in the hand-over store", again=True)
    return Ending(result=result)


def start_flow_run(dispatch: Dispatch) -> FlowRun:
    """The flow run of a stage in its pool; one for equal inputs, unless it has ended without."""
    for again in count():
        flow_run: FlowRun = run_deployment(  # type: ignore[assignment]
            f"run-stage/{dispatch.pool}",
            parameters=asdict(dispatch.order),
            idempotency_key=f"{dispatch.order.stage}:{dispatch.key}:{again}",
            timeout=0,
        )
        if flow_run.state is None or not flow_run.state.is_final():
            return flow_run
    raise AssertionError("unreachable")


def ending_of(state: State[Any]) -> Ending:
    """What a final state that is not Completed means for the stage."""
    return Ending(reason=state.message or state.name or "", again=state.is_crashed())
