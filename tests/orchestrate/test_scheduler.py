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
def handover(places: RuntimeEnvironment) -> ResultStore:
    return ResultStore(places.handover, None)


@pytest.fixture
def edited(open_graph: OpenGraph) -> Iterator[StageGraph]:
    with open_graph(EDIT) as graph:
        yield graph


def walk_of(graph: StageGraph, handover: ResultStore) -> Scheduler:
    return Scheduler(graph, handover, SETTINGS, "rev")


def result_of(graph: StageGraph, dispatch: ScheduledStage) -> StageResult:
    """What a worker would bring: the old outputs, made with the new parameters."""
    stage = dispatch.order.stage
    entry = copy.deepcopy(graph.entry(stage))
    params = graph.parameters(stage)
    entry["params"] = {file: dict(values) for file, values in params.items()}
    return StageResult(stage, dispatch.key, entry, {}, {}, 0.0, {"run": 1.0}, "", "here")


def states(walk: Scheduler) -> dict[str, str]:
    return {name: row.state for name, row in walk.rows.items() if row.state != "unchanged"}


def test_only_what_changed_starts(edited: StageGraph, handover: ResultStore) -> None:
    walk = walk_of(edited, handover)
    (dispatch,) = walk.next()
    assert dispatch.order.stage == "evaluate"
    assert dispatch.order.locks == edited.locks()
    assert walk.next() == [], "it is running"
    assert not walk.succeeded
    walk.mark_finished(dispatch, StageOutcome(result_of(edited, dispatch)))
    assert walk.next() == []
    assert states(walk) == {"evaluate": "ran"}
    assert walk.succeeded


def test_stages_go_to_their_pools(edited: StageGraph, handover: ResultStore) -> None:
    walk = walk_of(edited, handover)
    assert walk.pool_of("finetune@sg_detr") == "gpu"
    assert walk.pool_of("studies/dvc.yaml:pretrain@x-1") == "gpu"
    assert walk.pool_of("report") == "cpu"


def test_independent_stages_start_together(open_graph: OpenGraph, handover: ResultStore) -> None:
    with open_graph(TRAINING) as graph:
        walk = walk_of(graph, handover)
        first = {dispatch.order.stage: dispatch for dispatch in walk.next()}
        assert set(first) == {"pretrain@moment_detr", "scratch@moment_detr"}
        pretrain = first["pretrain@moment_detr"]
        walk.mark_finished(pretrain, StageOutcome(result_of(graph, pretrain)))
        (finetune,) = walk.next()
        assert finetune.order.stage == "finetune@moment_detr"


def test_a_failure_blocks_what_is_behind_it_alone(
    open_graph: OpenGraph, handover: ResultStore
) -> None:
    with open_graph(TRAINING) as graph:
        walk = walk_of(graph, handover)
        first = {dispatch.order.stage: dispatch for dispatch in walk.next()}
        walk.mark_finished(first["pretrain@moment_detr"], StageOutcome(reason="it broke"))
        assert walk.next() == []
        scratch = first["scratch@moment_detr"]
        walk.mark_finished(scratch, StageOutcome(result_of(graph, scratch)))
        assert walk.next() == []
        assert states(walk) == {
            "pretrain@moment_detr": "failed",
            "finetune@moment_detr": "blocked",
            "scratch@moment_detr": "ran",
            "package@moment_detr": "blocked",
            "evaluate": "blocked",
            "report": "blocked",
        }
        assert not walk.succeeded


def test_a_crash_is_tried_again_but_not_for_ever(edited: StageGraph, handover: ResultStore) -> None:
    walk = walk_of(edited, handover)
    for attempt in (1, 2):
        (dispatch,) = walk.next()
        assert walk.rows["evaluate"].attempts == attempt
        walk.mark_finished(dispatch, StageOutcome(reason="worker lost", retryable=True))
    assert walk.next() == []
    assert walk.rows["evaluate"].state == "failed"
    assert walk.rows["evaluate"].reason == "worker lost (2 attempts)"


def test_what_an_earlier_run_made_is_not_made_again(
    edited: StageGraph, handover: ResultStore, open_graph: OpenGraph
) -> None:
    walk = walk_of(edited, handover)
    (dispatch,) = walk.next()
    handover.keep(result_of(edited, dispatch))
    with open_graph(EDIT) as graph:
        retryable = walk_of(graph, handover)
        assert retryable.next() == []
        assert states(retryable) == {"evaluate": "restored"}
        assert retryable.succeeded


def test_a_record_whose_data_are_gone_is_dropped(
    edited: StageGraph, handover: ResultStore, open_graph: OpenGraph
) -> None:
    walk = walk_of(edited, handover)
    (dispatch,) = walk.next()
    result = result_of(edited, dispatch)
    result.entry["outs"][0]["md5"] = "ef" + "0" * 30 + ".dir"
    handover.keep(result)
    with open_graph(EDIT) as graph:
        retryable = walk_of(graph, handover)
        assert [dispatch.order.stage for dispatch in retryable.next()] == ["evaluate"]
    assert handover.find("evaluate", dispatch.key) is None


def test_a_result_that_is_not_of_this_order_is_a_failure(
    edited: StageGraph, handover: ResultStore
) -> None:
    walk = walk_of(edited, handover)
    (dispatch,) = walk.next()
    old = StageResult(
        "evaluate", dispatch.key, edited.entry("evaluate"), {}, {}, 0.0, {}, "", "here"
    )
    walk.mark_finished(dispatch, StageOutcome(old))
    assert walk.rows["evaluate"].state == "failed"
    assert walk.rows["evaluate"].reason == "ran, but then parameter evaluate changed"


def test_the_first_record_stays(handover: ResultStore) -> None:
    first = StageResult("a", "k", {"cmd": "x"}, {}, {}, 0.0, {}, "", "one")
    second = StageResult("a", "k", {"cmd": "x"}, {}, {}, 0.0, {}, "", "two")
    assert handover.keep(first) == first
    assert handover.keep(second) == first
    assert handover.find("a", "k") == first
    assert handover.find("a", "other") is None
