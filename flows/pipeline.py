"""The pipeline as a Prefect flow: DVC decides what must run, the pools' workers run it.

``python -m flows.pipeline`` runs everything in one process, without workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.dispatch import require_completed, run_stage_here, run_stage_on_pool
from flows.server import require_server
from mrmodel.errors import ConfigError, DataError, exit_codes
from mrmodel.files import parse_yaml
from mrmodel.orchestrate.checkout import REMOTE
from mrmodel.orchestrate.dvc_graph import StageGraph
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.markdown import stages_markdown
from mrmodel.orchestrate.result_store import ResultStore
from mrmodel.orchestrate.run_branch import workspace
from mrmodel.orchestrate.scheduler import ScheduledStage, Scheduler, StageOutcome
from mrmodel.orchestrate.tracking import open_pipeline_run, record_stages

# Maximum of parallel stages; on workers the pools' limits apply, and waiting costs nothing.
_AT_ONCE = 64


def threads(count: int) -> TaskRunner[PrefectFuture[Any]]:
    """A task runner that waits for up to `count` stages in parallel."""
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=count)
    return runner


@flow(task_runner=threads(_AT_ONCE))
def orchestrate(
    rev: str = "HEAD",
    targets: Sequence[str] = (),
    params: dict[str, Any] | None = None,
    here: bool = False,
) -> str | State[Any] | None:
    """Bring stages up to date; returns the run branch that holds the new dvc.lock, if it changed.

    Args:
        rev: revision to run, of the repository that `RuntimeEnvironment` names.
        targets: stages, with their upstream stages; none: all of dvc.yaml.
        params: dotted name -> value, changes to params.yaml.
        here: run the stages as child processes, one after another, instead of on workers.

    Ends as Failed if a stage did; successful stages are on the run branch all the same.
    """
    environment = RuntimeEnvironment.from_environment()
    result_store = ResultStore(environment.result_store, environment.endpoint)
    with workspace(environment, rev) as clone:
        clone.change(params or {})
        with open_pipeline_run(environment, clone, targets, params or {}) as record:
            graph = StageGraph(
                clone.folder, REMOTE if environment.remote else None, result_store.wait
            )
            scheduler = Scheduler(graph, result_store, clone.config.orchestrate, clone.rev, targets)
            scheduler.parent_run = record.run_id()
            follow(scheduler, here)
            record_stages(record, scheduler)
        said = ", ".join(
            row.stage for row in scheduler.rows.values() if row.state in ("ran", "restored")
        )
        changed = clone.publish(list(graph.locks()), f"Results of {said}")
        branch = clone.branch if changed or params else None
        shown = stages_markdown(scheduler.rows.values(), scheduler.rev, branch)
        create_markdown_artifact(shown, "pipeline", "What became of each stage")
        get_run_logger().info("\n%s", shown)
    if not scheduler.succeeded:
        bad = [
            f"{row.stage}: {row.reason}" for row in scheduler.rows.values() if row.state == "failed"
        ]
        return Failed(message="\n".join(bad))
    return branch


def follow(scheduler: Scheduler, here: bool) -> None:
    """Start stages that are ready and report their outcomes, until none is left."""
    running: dict[PrefectFuture[StageOutcome], ScheduledStage] = {}
    while True:
        for scheduled in scheduler.ready():
            running[submit(scheduled, scheduler, here)] = scheduled
        if not running:
            return
        future = next(as_completed(list(running)))
        scheduler.mark_finished(running.pop(future), future.result())


def submit(
    scheduled: ScheduledStage, scheduler: Scheduler, here: bool
) -> PrefectFuture[StageOutcome]:
    """Start a stage."""
    name = scheduled.order.stage
    if here:
        return run_stage_here.with_options(task_run_name=name).submit(scheduled)
    on_pool = run_stage_on_pool.with_options(task_run_name=name)
    return on_pool.submit(scheduled, scheduler.result_store, scheduler.settings.start_timeout_s)


@click.command()
@click.option("--rev", default="HEAD", show_default=True, help="Revision to run.")
@click.option("--target", "targets", multiple=True, help="A stage; upstream stages run too.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="A parameter.")
@click.option(
    "--jobs",
    type=click.IntRange(1, _AT_ONCE),
    default=1,
    show_default=True,
    help="Number of parallel stages.",
)
@click.option("--workers", is_flag=True, help="Dispatch to the work pools of PREFECT_API_URL.")
def main(
    rev: str, targets: tuple[str, ...], changes: tuple[str, ...], jobs: int, workers: bool
) -> None:
    """Bring the pipeline up to date, in this process or on workers."""
    require_server()
    params = {}
    for change in changes:
        name, mark, value = change.partition("=")
        if not (name and mark):
            raise ConfigError("--set", change, "expected NAME=VALUE")
        try:
            params[name] = parse_yaml(value)
        except DataError as error:
            raise ConfigError("--set", change, error.rule) from None
    at_once = _AT_ONCE if workers else jobs
    run = orchestrate.with_options(task_runner=threads(at_once))
    state = run(rev, targets, params, here=not workers, return_state=True)
    require_completed(state)
    branch = state.result()
    click.echo(f"git merge {branch} && dvc checkout" if branch else "Everything is up to date.")


if __name__ == "__main__":
    with exit_codes():
        main()
