"""``python -m flows.provision``: what a Prefect server needs before workers and deployments.

Work pools, one-slot limits for the GPUs, and the automation that ends flow runs whose worker is
lost. It may run again at any time: everything is created or brought up to date.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from mrmodel.errors import ConfigError, MrModelError

# Work pool -> its base job template. Flows that only wait for others have a pool of their own:
# in the pool of the stages, a worker with a limit could hold the place that they wait for.
POOLS = {"control": "cpu", "cpu": "cpu", "gpu": "gpu"}
TEMPLATES = Path("infra/work_pools")
LOST = "Flow runs of lost workers crash"
_ENDS = ("Completed", "Failed", "Cancelled", "Crashed")
_HEARTBEAT = "prefect.flow-run.heartbeat"


def create_pool(client: SyncPrefectClient, name: str, kind: str) -> None:
    """A work pool; its base job template is ``infra/work_pools/<template>-<kind>.json``."""
    template: dict[str, Any] = json.loads((TEMPLATES / f"{POOLS[name]}-{kind}.json").read_text())
    pool = WorkPoolCreate(name=name, type=kind, base_job_template=template)
    found = client.create_work_pool(pool, overwrite=True)
    if found.type != kind:  # Prefect changes everything but the type, and says nothing.
        rule = f"is of type {found.type}, which stays: prefect work-pool delete {name}, then again"
        raise ConfigError(f"work pool {name}", kind, rule)


def lost_workers(heartbeats_missed_s: float) -> AutomationCore:
    """A flow run that has sent heartbeats and then neither another nor its end has crashed.

    Flow runs beat every ``PREFECT_FLOWS_HEARTBEAT_FREQUENCY`` seconds. Fewer than four missed
    beats also happen to a living flow on a busy machine.
    """
    return AutomationCore(
        name=LOST,
        description="A worker that was killed, or whose machine is gone, cannot say so itself.",
        trigger=EventTrigger(
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *(f"prefect.flow-run.{end}" for end in _ENDS)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=heartbeats_missed_s),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                force=False,
                state=StateType.CRASHED,
                message=f"no heartbeat for {heartbeats_missed_s:g} s: its worker is lost",
            )
        ],
    )


def create_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create an automation, or bring the one of that name up to date."""
    for found in client.read_automations_by_name(automation.name):
        client.delete_automation(found.id)
    client.create_automation(automation)


@click.command()
@click.option(
    "--type",
    "kind",
    type=click.Choice(["process", "docker", "kubernetes"]),
    default="process",
    show_default=True,
    help="What the workers start for a flow run.",
)
@click.option("--gpu-slot", "slots", multiple=True, help="MRMODEL_GPU_SLOT of a GPU; one stage.")
@click.option(
    "--lost-after",
    default=120.0,
    show_default=True,
    help="Seconds without a heartbeat; at least 4 x PREFECT_FLOWS_HEARTBEAT_FREQUENCY.",
)
def main(kind: str, slots: tuple[str, ...], lost_after: float) -> None:
    """Prepare the Prefect server of PREFECT_API_URL."""
    with get_client(sync_client=True) as client:
        for name in POOLS:
            try:
                create_pool(client, name, kind)
            except MrModelError as error:
                raise click.ClickException(str(error)) from error
            click.echo(f"work pool {name} ({kind})")
        for slot in slots:
            client.upsert_global_concurrency_limit_by_name(slot, limit=1)
            click.echo(f"limit {slot}: one stage")
        create_automation(client, lost_workers(lost_after))
        click.echo(f"automation: {LOST}")


if __name__ == "__main__":
    main()
