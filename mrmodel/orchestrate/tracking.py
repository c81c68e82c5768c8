"""The MLflow run of a whole pipeline, the parent of the runs of its stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.run_branch import RunBranch
from mrmodel.orchestrate.scheduler import Scheduler, StageRow
from mrmodel.tracking.event_log import RunSpec
from mrmodel.tracking.run import TrackedRun, open_run


@contextmanager
def open_pipeline_run(
    environment: RuntimeEnvironment,
    clone: RunBranch,
    targets: Sequence[str],
    params: Mapping[str, Any],
) -> Iterator[TrackedRun]:
    """The MLflow run of one orchestration, named after its run branch.

    Args:
        environment: of the orchestrator.
        clone: what is run.
        targets: requested stages; none: all.
        params: changes to params.yaml.
    """
    settings = clone.config.tracking
    spec = RunSpec(
        experiment=settings.experiment,
        state=str(environment.state.resolve()),
        name="pipeline",
        title=clone.branch,
        code=str(clone.folder),
    )
    with open_run(settings, spec) as record:
        record.params({"targets": list(targets) or "all", "rev": clone.rev, "changed": params})
        yield record


def record_stages(record: TrackedRun, scheduler: Scheduler) -> None:
    """Log the outcome of each stage as a table, and the counts per outcome as metrics."""
    rows = list(scheduler.rows.values())
    record.table("stages.json", stage_columns(rows))
    states = [row.state for row in rows]
    record.log({f"stages/{state}": states.count(state) for state in dict.fromkeys(states)}, 0)
    bad = [f"{row.stage}: {row.reason}" for row in rows if row.state == "failed"]
    if bad:
        record.fail("\n".join(bad))


def stage_columns(rows: Sequence[StageRow]) -> dict[str, list[Any]]:
    """Columns with one entry per stage; seconds of each step are those of its result's run."""
    results = [row.result for row in rows]
    steps = dict.fromkeys(step for result in results if result for step in result.seconds)
    seconds = {
        f"{step}_s": [result.seconds.get(step) if result else None for result in results]
        for step in steps
    }
    return {
        "stage": [row.stage for row in rows],
        "state": [row.state for row in rows],
        "why": [row.reason for row in rows],
        "pool": [row.pool for row in rows],
        "attempts": [row.attempts for row in rows],
        **seconds,
        "worker": [result.worker if result else None for result in results],
        "record": [result.mlflow if result else None for result in results],
    }
