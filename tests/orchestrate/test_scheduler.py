"""The walk: what starts when, what a crash or a failure means, and what is never run twice."""

import copy
from collections.abc import Iterator

import pytest

from mrmodel.config.schema import OrchestrateSettings, ShardSettings
from mrmodel.orchestrate.dvc_graph import StageGraph
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import ResultStore, StageResult
from mrmodel.orchestrate.scheduler import ScheduledStage, Scheduler, StageOutcome
from tests.orchestrate.conftest import OpenGraph

SETTINGS = OrchestrateSettings(
    pools={"pretrain": "gpu", "finetune": "gpu"},
    default_pool="cpu",
    attempts=2,
    stage_timeout_s=60.0,
    start_timeout_s=60.0,
    extract_shards=ShardSettings(count=1, runner="processes", address=None),
)
# Changes `evaluate` alone; its outputs stay, so `report` does not change.
EDIT = {"params.yaml": ("bootstrap_resamples: 200", "bootstrap_resamples: 300")}
# Changes pretrain, finetune and scratch.
TRAINING = {"params.yaml": ("weight_decay: 1.0e-4", "weight_decay: 2.0e-4")}


@pytest.fixture
def result_store(environment: RuntimeEnvironment) -> ResultStore:
    return ResultStore(environment.result_store, None)


@pytest.fixture
def edited(open_graph: OpenGraph) -> Iterator[StageGraph]:
    with open_graph(EDIT) as graph:
        yield graph


def scheduler_of(graph: StageGraph, result_store: ResultStore) -> Scheduler:
    return Scheduler(graph, result_store, SETTINGS, "rev")


def result_of(graph: StageGraph, scheduled: ScheduledStage) -> StageResult:
    """What a worker would bring: the old outputs, made with the new parameters."""
    stage = scheduled.order.stage
    entry = copy.deepcopy(graph.entry(stage))
    params = graph.parameters(stage)
    entry["params"] = {file: dict(values) for file, values in params.items()}
    return StageResult(stage, scheduled.key, entry, {}, {}, 0.0, {"run": 1.0}, "", "here")


def states(scheduler: Scheduler) -> dict[str, str]:
    return {name: row.state for name, row in scheduler.rows.items() if row.state != "unchanged"}


def test_only_what_changed_starts(edited: StageGraph, result_store: ResultStore) -> None:
    scheduler = scheduler_of(edited, result_store)
    (scheduled,) = scheduler.ready()
    assert scheduled.order.stage == "evaluate"
    assert scheduled.order.locks == edited.locks()
    assert scheduler.ready() == [], "it is running"
    assert not scheduler.succeeded
    scheduler.mark_finished(scheduled, StageOutcome(result_of(edited, scheduled)))
    assert scheduler.ready() == []
    assert states(scheduler) == {"evaluate": "ran"}
    assert scheduler.succeeded


def test_stages_go_to_their_pools(graph: StageGraph, result_store: ResultStore) -> None:
    scheduler = scheduler_of(graph, result_store)
    assert scheduler.pool_of("finetune@sg_detr") == "gpu"
    assert scheduler.pool_of("studies/dvc.yaml:pretrain@x-1") == "gpu"
    assert scheduler.pool_of("report") == "cpu"


def test_independent_stages_start_together(
    open_graph: OpenGraph, result_store: ResultStore
) -> None:
    with open_graph(TRAINING) as graph:
        scheduler = scheduler_of(graph, result_store)
        first = {scheduled.order.stage: scheduled for scheduled in scheduler.ready()}
        assert set(first) == {"pretrain@moment_detr", "scratch@moment_detr"}
        pretrain = first["pretrain@moment_detr"]
        scheduler.mark_finished(pretrain, StageOutcome(result_of(graph, pretrain)))
        (finetune,) = scheduler.ready()
        assert finetune.order.stage == "finetune@moment_detr"


def test_a_failure_blocks_what_is_behind_it_alone(
    open_graph: OpenGraph, result_store: ResultStore
) -> None:
    with open_graph(TRAINING) as graph:
        scheduler = scheduler_of(graph, result_store)
        first = {scheduled.order.stage: scheduled for scheduled in scheduler.ready()}
        scheduler.mark_finished(first["pretrain@moment_detr"], StageOutcome(reason="it broke"))
        assert scheduler.ready() == []
        scratch = first["scratch@moment_detr"]
        scheduler.mark_finished(scratch, StageOutcome(result_of(graph, scratch)))
        assert scheduler.ready() == []
        assert states(scheduler) == {
            "pretrain@moment_detr": "failed",
            "finetune@moment_detr": "blocked",
            "scratch@moment_detr": "ran",
            "package@moment_detr": "blocked",
            "evaluate": "blocked",
            "report": "blocked",
        }
        assert not scheduler.succeeded


def test_a_crash_is_tried_again_but_not_for_ever(
    edited: StageGraph, result_store: ResultStore
) -> None:
    scheduler = scheduler_of(edited, result_store)
    for attempt in (1, 2):
        (scheduled,) = scheduler.ready()
        assert scheduler.rows["evaluate"].attempts == attempt
        scheduler.mark_finished(scheduled, StageOutcome(reason="worker lost", retryable=True))
    assert scheduler.ready() == []
    assert scheduler.rows["evaluate"].state == "failed"
    assert scheduler.rows["evaluate"].reason == "worker lost (2 attempts)"


def test_what_an_earlier_run_made_is_not_made_again(
    edited: StageGraph, result_store: ResultStore
) -> None:
    scheduler = scheduler_of(edited, result_store)
    (scheduled,) = scheduler.ready()
    result_store.keep(result_of(edited, scheduled))
    again = scheduler_of(edited, result_store)
    assert again.ready() == []
    assert states(again) == {"evaluate": "restored"}
    assert again.succeeded


def test_a_record_whose_data_are_gone_is_dropped(
    edited: StageGraph, result_store: ResultStore
) -> None:
    scheduler = scheduler_of(edited, result_store)
    (scheduled,) = scheduler.ready()
    result = result_of(edited, scheduled)
    result.entry["outs"][0]["md5"] = "ef" + "0" * 30 + ".dir"
    result_store.keep(result)
    again = scheduler_of(edited, result_store)
    assert [scheduled.order.stage for scheduled in again.ready()] == ["evaluate"]
    assert result_store.find("evaluate", scheduled.key) is None


def test_a_result_that_is_not_of_this_order_is_a_failure(
    edited: StageGraph, result_store: ResultStore
) -> None:
    scheduler = scheduler_of(edited, result_store)
    (scheduled,) = scheduler.ready()
    old = StageResult(
        "evaluate", scheduled.key, edited.entry("evaluate"), {}, {}, 0.0, {}, "", "here"
    )
    scheduler.mark_finished(scheduled, StageOutcome(old))
    assert scheduler.rows["evaluate"].state == "failed"
    assert scheduler.rows["evaluate"].reason == "ran, but then parameter evaluate changed"


def test_the_first_record_stays(result_store: ResultStore) -> None:
    first = StageResult("a", "k", {"cmd": "x"}, {}, {}, 0.0, {}, "", "one")
    second = StageResult("a", "k", {"cmd": "x"}, {}, {}, 0.0, {}, "", "two")
    assert result_store.keep(first) == first
    assert result_store.keep(second) == first
    assert result_store.find("a", "k") == first
    assert result_store.find("a", "other") is None
