"""A worker of a search as a Prefect flow: it takes trials of a study until none waits."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed, Failed

from flows.stages import gpu_slot
from mrmodel.orchestrate.clone import fresh_clone
from mrmodel.orchestrate.module import Ended, run_module
from mrmodel.orchestrate.places import Places
from mrmodel.track.record import PARENT


@flow
def tune_worker(study: str, rev: str, owner: str, parent_run: str | None = None) -> State[Any]:
    """Work on a study in a fresh clone on this machine; see `mrmodel.tune.errand`.

    Args:
        study: its name in the storage of `OPTUNA_STORAGE`.
        rev: revision that the clone checks out.
        owner: what its trials call this worker; no two are alike.
        parent_run: MLflow's id of the run of the search.
    """
    command = ["mrmodel.tune.errand", study, "--owner", owner]
    variables = {PARENT: parent_run} if parent_run else {}
    with gpu_slot(), fresh_clone(Places.from_environment(), rev, {}) as clone:
        return state_of(run_module(clone, command, get_run_logger().info, variables))


def state_of(ended: Ended) -> State[Any]:
    """Only a worker that was killed may be replaced by another one."""
    state: State[Any]
    if ended.code == 0:
        state = Completed()
    elif ended.code < 0:
        state = Crashed(message=f"its process was killed by signal {-ended.code}")
    else:
        state = Failed(message="\n".join(ended.last))
    return state
