"""Hyperparameter search as a Prefect flow, with workers on a pool.

``python -m flows.tune`` starts one on the pools of PREFECT_API_URL and waits for its end; for a
search without servers use `mrmodel tune run`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import click
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import FlowRun
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import TERMINAL_STATES, State, StateType
from prefect.deployments import run_deployment
from prefect.states import Cancelling, Completed, Crashed, Failed

from flows.dispatch import POLL_S, Watch, require_completed
from flows.server import require_server
from flows.stages import gpu_slot
from mrmodel.cli.options import TRIALS, WORKERS
from mrmodel.errors import exit_codes
from mrmodel.files import digest_of
from mrmodel.names import POOL, SEARCH
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.processes import Ended, run_python
from mrmodel.tracking.run import PARENT
from mrmodel.tune.remote import RevisionSearch, SearchOutcome, SearchOverrides, search_revision
from mrmodel.tune.report import sentence
from mrmodel.tune.result import BETTER, NOT_BETTER
from mrmodel.tune.study import Owner
from mrmodel.tune.worker_pool import WorkerHandle, WorkerOutcome, is_gone_from_here


class PrefectWorkerPool:
    """Workers as flow runs of ``tune-worker/<pool>``, each named by its worker's label.

    Args:
        client: of the server.
        work: the search.
        pool: work pool; None: that of the tuned stage.
        result_store: URL of the project's result store; distinguishes its searches from others on
            the same server.
    """

    def __init__(
        self, client: SyncPrefectClient, work: RevisionSearch, pool: str | None, result_store: str
    ) -> None:
        settings = work.config.orchestrate
        self._client, self._work, self._result_store = client, work, result_store
        self._pool = pool or settings.pools.get(work.config.tune.run, settings.default_pool)

    def earlier(self, study: str) -> Sequence[WorkerHandle]:
        """Flow runs for a study that are still running after their orchestration has ended."""
        living = [kind for kind in StateType if kind not in TERMINAL_STATES]
        wanted = FlowRunFilter(
            tags=FlowRunFilterTags(all_=[self._tag(study)]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=living)),
        )
        return [
            self._handle(found) for found in self._client.read_flow_runs(flow_run_filter=wanted)
        ]

    def start(self, study: str) -> WorkerHandle:
        """Start another flow run on the pool."""
        label = f"{study}-{uuid4().hex[:12]}"
        order = {
            "study": study,
            "rev": self._work.rev,
            "owner": label,
            "parent_run": self._work.parent_run,
        }
        flow_run: FlowRun = run_deployment(  # type: ignore[assignment]
            f"tune-worker/{self._pool}",
            parameters=order,
            flow_run_name=label,
            tags=[self._tag(study)],
            idempotency_key=label,
            timeout=0,
        )
        return self._handle(flow_run)

    def is_lost(self, owner: Owner) -> bool:
        """Whether the flow run, or the process of a search without flows, has ended."""
        wanted = FlowRunFilter(name=FlowRunFilterName(any_=[owner.label]))
        found = self._client.read_flow_runs(flow_run_filter=wanted)
        if not found:
            return is_gone_from_here(owner)
        return all(one.state is not None and one.state.is_final() for one in found)

    def _tag(self, study: str) -> str:
        return f"{study}@{digest_of(self._result_store)[:8]}"

    def _handle(self, flow_run: FlowRun) -> WorkerHandle:
        timeout_s = self._work.config.orchestrate.start_timeout_s
        watch = Watch(flow_run.id, self._client, self._pool, timeout_s)
        return PrefectWorkerHandle(flow_run.name, watch, self._client)


class PrefectWorkerHandle:
    """One flow run.

    Args:
        label: its name.
        watch: polls it.
        client: of the server.
    """

    def __init__(self, label: str, watch: Watch, client: SyncPrefectClient) -> None:
        self._label, self._watch, self._client = label, watch, client
        self._looked = 0.0
        self._ending: WorkerOutcome | None = None

    @property
    def label(self) -> str:
        """Its name."""
        return self._label

    def outcome(self) -> WorkerOutcome | None:
        """How it ended; polls the server at most every two seconds."""
        if self._ending is None and time.monotonic() - self._looked > POLL_S:
            self._looked = time.monotonic()
            state = self._watch.look()
            self._ending = None if state is None else outcome_of(state)
        return self._ending

    def stop(self) -> None:
        """Cancel the flow run."""
        self._client.set_flow_run_state(self._watch.flow_run, Cancelling())


def outcome_of(state: State[Any]) -> WorkerOutcome:
    """Convert a final state to the worker's outcome: a worker that crashed is replaced."""
    if state.is_completed():
        return WorkerOutcome()
    return WorkerOutcome(state.message or state.name or "it ended", failed=state.is_failed())


@flow(flow_run_name="tune {rev}")
def tune(
    rev: str = "HEAD",
    study: str | None = None,
    trials: int | None = None,
    workers: int | None = None,
    pool: str | None = None,
) -> State[Any]:
    """Search for better hyperparameters, confirm them, and push them as a branch for review.

    Args:
        rev: revision to tune, of the repository of `RuntimeEnvironment`; its dvc.lock determines
            the data.
        study: its name; an existing one is resumed. None: tune.study of params.yaml.
        trials: total number. None: tune.trials.
        workers: number of parallel flow runs. None: tune.workers.
        pool: their work pool. None: that of the tuned stage.

    Ends as Better, with the name of the branch, or as NotBetter.
    """
    if pool is not None:
        POOL.require("pool", pool)
    environment = RuntimeEnvironment.from_environment()
    with get_client(sync_client=True) as client:
        found = search_revision(
            environment,
            rev,
            SearchOverrides(study, trials, workers),
            lambda work: PrefectWorkerPool(client, work, pool, environment.result_store),
            FlowReporter(),
        )
    create_markdown_artifact(markdown(found), "tuning", "What the search found")
    get_run_logger().info("\n%s", "\n".join(found.lines))
    message = sentence(found.result) + (f"; branch {found.branch}" if found.branch else "")
    end = BETTER if found.result.changes else NOT_BETTER
    state: State[Any] = Completed(name=end, message=message)
    return state


def markdown(found: SearchOutcome) -> str:
    """The result as Markdown, with the changes and the number of trials."""
    changes = [f"* `{path}`: {value}" for path, value in found.result.changes.items()]
    branch = [f"On the branch `{found.branch}`:", "", *changes, ""] if found.branch else []
    counts = [f"* {line}" for line in found.lines]
    return "\n".join([f"**{sentence(found.result)}**", "", *branch, *counts])


class FlowReporter:
    """Progress as lines of the flow run's log."""

    def __init__(self) -> None:
        self._log, self._name, self._total, self._done = get_run_logger(), "", 0, 0

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Log the start of a study."""
        self._name, self._total, self._done = name, total, done
        self._log.info("%s: %d trials", name, total)

    def advance(self, steps: int = 1, **info: object) -> None:
        """Log that trials have ended."""
        self._done += steps
        shown = "".join(f", {key} {value:.2f}" for key, value in info.items())
        self._log.info("%s: %d/%d%s", self._name, self._done, self._total, shown)

    def finish(self) -> None:
        """Do nothing: the start of the next study is logged."""


@click.command()
@click.option("--rev", default="HEAD", show_default=True, help="Revision to tune.")
@click.option("--study", help="Its name; an existing one is resumed [default: tune.study].")
@click.option("--trials", type=TRIALS, help="[default: tune.trials]")
@click.option("--workers", type=WORKERS, help="Parallel runs [default: tune.workers]")
@click.option("--pool", help="Their work pool [default: that of the tuned stage].")
def main(
    rev: str, study: str | None, trials: int | None, workers: int | None, pool: str | None
) -> None:
    """Search for better hyperparameters on the work pools of PREFECT_API_URL."""
    require_server()
    state = tune(rev, study, trials, workers, pool, return_state=True)
    require_completed(state)
    click.echo(f"{state.name}: {state.message}")


@flow
def tune_worker(study: str, rev: str, owner: str, parent_run: str | None = None) -> State[Any]:
    """Run trials of a study in a fresh clone on this machine; see `mrmodel.tune.worker`.

    Args:
        study: its name in the storage of `OPTUNA_STORAGE`.
        rev: revision that the clone checks out.
        owner: unique label of this worker in its trials.
        parent_run: id of the search's MLflow run.
    """
    SEARCH.require("study", study)
    variables = {PARENT: parent_run} if parent_run else {}
    with gpu_slot(), fresh_clone(RuntimeEnvironment.from_environment(), rev, {}) as clone:
        ended = run_python(
            "mrmodel.tune.worker",
            *(study, f"--owner={owner}", "--fetch"),
            folder=clone,
            on_line=get_run_logger().info,
            variables=variables,
        )
    return state_of(ended)


def state_of(ended: Ended) -> State[Any]:
    """The final state: only a worker that was killed may be replaced by another one."""
    state: State[Any]
    if ended.code == 0:
        state = Completed()
    elif ended.code < 0:
        state = Crashed(message=f"its process was killed by signal {-ended.code}")
    else:
        state = Failed(message="\n".join(ended.last))
    return state


if __name__ == "__main__":
    with exit_codes():
        main()
