"""prefect.yaml, the pools of params.yaml and the flows belong together."""

from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.client.schemas.objects import State
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Cancelled, Crashed, Failed

from flows.dispatch import ending_of
from flows.provision import POOLS, lost_workers
from flows.stages import artifact_key
from mrmodel.config import load_config
from mrmodel.orchestrate.walk import Ending
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


@pytest.mark.parametrize(
    ("state", "ending"),
    [
        (Crashed(message="killed"), Ending(reason="killed", again=True)),
        (Failed(message="a mistake"), Ending(reason="a mistake")),
        (Cancelled(message="by a person"), Ending(reason="by a person")),
    ],
)
def test_only_a_crash_is_tried_again(state: State[Any], ending: Ending) -> None:
    assert ending_of(state) == ending


def test_the_automation_waits_for_a_beat_or_an_end() -> None:
    trigger = lost_workers(90.0).trigger
    assert trigger.within.total_seconds() == 90.0
    assert trigger.after == {"prefect.flow-run.heartbeat"}
    assert trigger.after < trigger.expect


def test_artifact_keys_are_what_prefect_allows() -> None:
    assert (
        artifact_key("studies/dvc.yaml:seed_run@sg_detr-1") == "studies-dvc-yaml-seed-run-sg-detr-1"
    )
