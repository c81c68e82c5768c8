"""prefect.yaml, the pools of params.yaml and the flows belong together."""

from typing import Any, get_args
from zoneinfo import ZoneInfo

import click
import pytest
import yaml
from prefect.client.schemas.objects import State
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Crashed, Failed

from flows.dispatch import outcome_of
from flows.pipeline import main as pipeline
from flows.provision import POOLS, lost_workers
from flows.provision import main as provision
from flows.retrain import main as retrain
from flows.stages import artifact_key
from flows.tune import main as tune
from flows.tune import outcome_of as worker_outcome_of
from flows.tune import state_of
from mrmodel.config.schema import load_config
from mrmodel.config.tune import TuneSettings
from mrmodel.errors import ConfigError
from mrmodel.orchestrate.scheduler import StageOutcome
from mrmodel.processes import Ended
from mrmodel.tune.result import ENDS
from mrmodel.tune.worker_pool import WorkerOutcome
from tests.project import ROOT

DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())[
    "deployments"
]


def test_the_server_can_be_imported() -> None:
    """Newer fastapi releases break Prefect's server, and pip would take them."""
    import prefect.server.api.server  # noqa: F401


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployment_names_a_flow_and_a_pool(deployment: dict[str, Any]) -> None:
    assert deployment["work_pool"]["name"] in POOLS
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    known = flow.parameters.properties
    assert set(deployment.get("parameters", {})) <= set(known)
    for schedule in deployment.get("schedules", []):
        assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        assert ZoneInfo(schedule["timezone"])


def test_every_pool_of_a_stage_has_its_deployment() -> None:
    settings = load_config(ROOT / "params.yaml").orchestrate
    deployed = {
        deployment["name"]: deployment["work_pool"]["name"]
        for deployment in DEPLOYMENTS
        if deployment["entrypoint"] == "flows.stages.run_stage"
    }
    for pool in {*settings.pools.values(), settings.default_pool}:
        assert deployed[pool] == pool, "dispatch looks for run-stage/<pool>"


def test_every_pool_that_trains_has_workers_of_searches() -> None:
    settings = load_config(ROOT / "params.yaml").orchestrate
    deployed = {
        deployment["name"]: deployment["work_pool"]["name"]
        for deployment in DEPLOYMENTS
        if deployment["entrypoint"] == "flows.tune.tune_worker"
    }
    for run in get_args(TuneSettings.model_fields["run"].annotation):
        pool = settings.pools.get(run, settings.default_pool)
        assert deployed[pool] == pool, "a search looks for tune-worker/<pool>"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0, WorkerOutcome()),
        (-9, WorkerOutcome("its process was killed by signal 9")),
        (1, WorkerOutcome("error: no rows", failed=True)),
    ],
)
def test_only_a_killed_worker_of_a_search_is_replaced(code: int, outcome: WorkerOutcome) -> None:
    assert worker_outcome_of(state_of(Ended(code, ["error: no rows"]))) == outcome


@pytest.mark.parametrize("state", [Cancelled(message="by a person"), Crashed(message="lost")])
def test_a_worker_that_is_gone_is_replaced(state: State[Any]) -> None:
    assert worker_outcome_of(state) == WorkerOutcome(str(state.message))


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        (Crashed(message="killed"), StageOutcome(reason="killed", retryable=True)),
        (Failed(message="a mistake"), StageOutcome(reason="a mistake")),
        (Cancelled(message="by a person"), StageOutcome(reason="by a person")),
    ],
)
def test_only_a_crash_is_tried_again(state: State[Any], outcome: StageOutcome) -> None:
    assert outcome_of(state) == outcome


def test_the_automation_waits_for_a_beat_or_an_end() -> None:
    trigger = lost_workers(90.0).trigger
    assert trigger.within.total_seconds() == 90.0
    assert trigger.after == {"prefect.flow-run.heartbeat"}
    assert trigger.after < trigger.expect
    assert {f"prefect.flow-run.{end}" for end in ENDS} < trigger.expect


def test_artifact_keys_are_what_prefect_allows() -> None:
    assert (
        artifact_key("studies/dvc.yaml:seed_run@sg_detr-1") == "studies-dvc-yaml-seed-run-sg-detr-1"
    )


@pytest.mark.parametrize(
    ("main", "option", "most"),
    [
        (pipeline, "--jobs", 64),
        (tune, "--trials", 100_000),
        (tune, "--workers", 1024),
        (provision, "--lost-after", 7 * 86_400),
    ],
)
def test_numbers_of_options_have_a_range(main: click.Command, option: str, most: int) -> None:
    (parameter,) = [one for one in main.params if option in one.opts]
    for value in ("0", "-1", "nan", "inf", str(most + 1)):
        with pytest.raises(click.BadParameter):
            parameter.type.convert(value, parameter, None)
    assert parameter.type.convert(str(most), parameter, None) == most


@pytest.mark.parametrize(
    ("command", "address", "rule"),
    [
        (pipeline, "http://u:pass-word@127.0.0.1:1/api", "does not answer: .*refused"),
        (pipeline, "http:/127.0.0.1:4200/api", "is no address"),
        (provision, "127.0.0.1:4200/api", "is no address"),
        (retrain, "http://host:42x0/api", "42x0"),
        (tune, "nonsense://x", "is no address"),
    ],
)
def test_a_server_that_does_not_answer_is_one_line(
    command: click.Command, address: str, rule: str
) -> None:
    with (
        temporary_settings({PREFECT_API_URL: address}),
        pytest.raises(ConfigError, match=f"^PREFECT_API_URL = '.*{rule}") as caught,
    ):
        command.main([], standalone_mode=False)
    assert "pass-word" not in str(caught.value)
