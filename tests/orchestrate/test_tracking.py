"""The runs of stages belong to the run of their pipeline, which says what became of each."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mrmodel.orchestrate.dvc_graph import StageGraph
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import ResultStore
from mrmodel.orchestrate.run_branch import RunBranch, workspace
from mrmodel.orchestrate.scheduler import ScheduledStage, Scheduler, StageOutcome
from mrmodel.orchestrate.stage_process import Listener, StageFailed, run_stage_process
from mrmodel.orchestrate.tracking import open_pipeline_run, record_stages
from tests.orchestrate.test_stage_runner import Bench, tracked

__all__ = ["tracked"]


@pytest.fixture
def client(tracked: Bench, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return MlflowClient(f"sqlite:///{tracked.environment.state / 'mlflow.db'}")


def runs(client: MlflowClient) -> dict[str, Run]:
    experiment = client.get_experiment_by_name("mrmodel")
    return {run.data.tags["stage"]: run for run in client.search_runs([experiment.experiment_id])}


@contextmanager
def scheduling(clone: RunBranch, environment: RuntimeEnvironment) -> Iterator[Scheduler]:
    result_store = ResultStore(environment.result_store, None)
    settings = clone.config.orchestrate
    yield Scheduler(
        StageGraph(clone.folder, None, result_store.wait), result_store, settings, clone.rev
    )


def finish(scheduler: Scheduler) -> list[ScheduledStage]:
    """Run one stage after another, without Prefect; what was dispatched."""
    started = []
    while waiting := scheduler.ready():
        for scheduled in waiting:
            started.append(scheduled)
            try:
                ending = StageOutcome(run_stage_process(scheduled.order, Listener()))
            except StageFailed as error:
                ending = StageOutcome(reason=str(error))
            scheduler.mark_finished(scheduled, ending)
    return started


@pytest.mark.services
def test_stage_runs_are_below_the_pipeline_run(tracked: Bench, client: MlflowClient) -> None:
    change = {"evaluate.bootstrap_resamples": 123}
    with workspace(tracked.environment, "HEAD") as clone:
        clone.change(change)
        with (
            open_pipeline_run(tracked.environment, clone, ["report"], change) as record,
            scheduling(clone, tracked.environment) as scheduler,
        ):
            scheduler.parent_run = record.run_id()
            finish(scheduler)
            record_stages(record, scheduler)
        revision, branch = clone.rev, clone.branch
    found = runs(client)
    pipeline = found["pipeline"]
    assert (pipeline.info.status, pipeline.info.run_name) == ("FINISHED", branch)
    assert pipeline.data.params == {
        "targets": "['report']",
        "rev": revision,
        "changed.evaluate.bootstrap_resamples": "123",
    }
    assert pipeline.data.tags["git.revision"] == revision
    assert pipeline.data.metrics["stages/ran"] == 2
    for stage in ("evaluate", "report"):
        assert found[stage].data.tags["mlflow.parentRunId"] == pipeline.info.run_id
        assert found[stage].data.tags["git.dirty"] == "false", "dvc.lock alone is no change"
    assert found["evaluate"].data.params["evaluate.bootstrap_resamples"] == "123"
    path = client.download_artifacts(pipeline.info.run_id, "stages.json")
    table = json.loads(Path(path).read_text())
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    assert rows["corpus"]["state"] == "unchanged"
    assert rows["corpus"]["run_s"] is None
    assert rows["evaluate"]["state"] == "ran"
    assert rows["evaluate"]["why"] == "parameter evaluate changed"
    assert rows["evaluate"]["run_s"] > 0
    assert rows["evaluate"]["attempts"] == 1


@pytest.mark.services
def test_a_failed_stage_makes_the_pipeline_run_a_failed_one(
    tracked: Bench, client: MlflowClient
) -> None:
    tracked.commit("params.yaml", "source: sample", "source: folder")
    with (
        workspace(tracked.environment, "HEAD") as clone,
        open_pipeline_run(tracked.environment, clone, [], {}) as record,
        scheduling(clone, tracked.environment) as scheduler,
    ):
        scheduler.parent_run = record.run_id()
        finish(scheduler)
        record_stages(record, scheduler)
    found = runs(client)
    assert found["pipeline"].info.status == "FAILED"
    assert "own_videos" in found["pipeline"].data.tags["error"]
    assert found["corpus"].info.status == "FAILED"
    assert "own_videos" in found["corpus"].data.tags["error"]
    assert found["pipeline"].data.metrics["stages/blocked"] == len(scheduler.rows) - 1


@pytest.mark.slow
def test_the_parent_decides_nothing(tracked: Bench) -> None:
    """Neither key nor lock file, nor what a restored stage is."""
    tracked.commit("params.yaml", "bootstrap_resamples: 200", "bootstrap_resamples: 77")
    found = []
    for parent in ("1" * 32, None):
        with (
            workspace(tracked.environment, "HEAD") as clone,
            scheduling(clone, tracked.environment) as scheduler,
        ):
            scheduler.parent_run = parent
            started = finish(scheduler)
            states = {name: row.state for name, row in scheduler.rows.items()}
            found.append((states["evaluate"], len(started), scheduler.graph.locks()))
            keys = {name: scheduler.graph.status(name).key for name in scheduler.rows}
            assert not started or keys["evaluate"] == started[0].key
    (first, ran, locks), (second, ran_again, same) = found
    assert (first, ran) == ("ran", 2)
    assert (second, ran_again) == ("restored", 0)
    assert locks == same


@pytest.mark.services
def test_runs_that_lost_workers_left_open_are_closed_with_the_pipeline(
    tracked: Bench, client: MlflowClient
) -> None:
    with (
        workspace(tracked.environment, "HEAD") as clone,
        open_pipeline_run(tracked.environment, clone, [], {}) as record,
    ):
        parent = record.run_id()
        experiment = client.get_experiment_by_name("mrmodel").experiment_id
        tags = {"stage": "pretrain", "machine": "another", "mlflow.parentRunId": parent}
        lost = client.create_run(experiment, tags=tags).info.run_id
        tags = {"stage": "scratch", "machine": "another", "mlflow.parentRunId": "0" * 32}
        other = client.create_run(experiment, tags=tags).info.run_id
    assert client.get_run(lost).info.status == "KILLED"
    assert client.get_run(other).info.status == "RUNNING", "it is of another pipeline"


def test_without_tracking_there_is_no_parent(tracked: Bench) -> None:
    tracked.switch_off_tracking()
    with (
        workspace(tracked.environment, "HEAD") as clone,
        open_pipeline_run(tracked.environment, clone, [], {}) as record,
    ):
        assert record.run_id() is None
