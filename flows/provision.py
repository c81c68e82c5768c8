"""``python -m flows.provision``: sets up a Prefect server for workers and deployments.

Work pools, one-slot concurrency limits for the GPUs, an automation that ends flow runs whose worker
is lost, and one that sends the result of a retraining to a webhook. It can be run again at any
time: everything is created or updated.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import click
from prefect.blocks.fields import SecretDict
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from pydantic import SecretStr

from flows.server import require_server
from mrmodel.cli.options import FiniteRange
from mrmodel.errors import ConfigError, exit_codes
from mrmodel.retrain.finish import ENDS
from mrmodel.tune.result import ENDS as SEARCH_ENDS

# Work pool -> its base job template. Flows that only wait for others have their own pool: in the
# pool of the stages, with a worker limit, they could occupy the slots that they wait for.
POOLS = {"control": "cpu", "cpu": "cpu", "gpu": "gpu"}
TEMPLATES = Path("infra/work_pools")
LOST = "Flow runs of lost workers crash"
NOTIFY = "Tell how a retraining ended"
WEBHOOK = "mrmodel-retraining"
_BAD_ENDS = ("Failed", "Crashed", "TimedOut")
_ENDS = ("Completed", "Cancelled", *_BAD_ENDS, *ENDS, *SEARCH_ENDS)
# No notification if nothing was new, or if a run was cancelled because another one is running.
_NEWS = (*_BAD_ENDS, *(end for end in ENDS if end != "Unchanged"))
_HEARTBEAT = "prefect.flow-run.heartbeat"


def create_pool(client: SyncPrefectClient, name: str, kind: str) -> None:
    """Create a work pool; its base job template is ``infra/work_pools/<template>-<kind>.json``."""
    template: dict[str, Any] = json.loads((TEMPLATES / f"{POOLS[name]}-{kind}.json").read_text())
    pool = WorkPoolCreate(name=name, type=kind, base_job_template=template)
    found = client.create_work_pool(pool, overwrite=True)
    if found.type != kind:  # Prefect updates everything but the type, without an error.
        rule = f"is of type {found.type}, which stays: prefect work-pool delete {name}, then again"
        raise ConfigError(f"work pool {name}", kind, rule)


def lost_workers(heartbeats_missed_s: float) -> AutomationCore:
    """Marks a flow run as crashed that has sent heartbeats and then neither another nor its end.

    Heartbeats are sent every ``PREFECT_FLOWS_HEARTBEAT_FREQUENCY`` seconds. On a busy machine a
    running flow too can miss up to three.
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


def notification(webhook: UUID) -> AutomationCore:
    """Sends name, state and reasons as JSON when a retraining ends with news."""
    fields = {
        "flow_run": "flow_run.name",
        "state": "flow_run.state.name",
        "message": "flow_run.state.message",
        "address": "flow_run | ui_url",
    }
    rows = [f'"{name}": {{{{ {value} | tojson }}}}' for name, value in fields.items()]
    payload = f"{{{', '.join(rows)}}}"
    return AutomationCore(
        name=NOTIFY,
        description="Promoted, refused or quarantined with the reasons, or failed.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{end}" for end in _NEWS},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "flow", "prefect.resource.name": "retrain"}
            ),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=webhook, payload=payload)],
    )


def save_webhook(url: str) -> UUID:
    """The block that calls `url`; the server stores it as a secret, since it may hold a token."""
    kind = SecretDict({"Content-Type": "application/json"})
    saved = Webhook(url=SecretStr(url), headers=kind).save(WEBHOOK, overwrite=True)
    assert isinstance(saved, UUID)  # Prefect types its calls as sync or async.
    return saved


def create_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create an automation, or update the one of that name."""
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
    help="How workers run a flow run.",
)
@click.option("--gpu-slot", "slots", multiple=True, help="MRMODEL_GPU_SLOT of a GPU; one stage.")
@click.option(
    "--lost-after",
    type=FiniteRange(1.0, 7 * 86400.0),
    default=120.0,
    show_default=True,
    help="Seconds without a heartbeat; at least 4 x PREFECT_FLOWS_HEARTBEAT_FREQUENCY.",
)
@click.option(
    "--notify",
    envvar="MRMODEL_NOTIFY_URL",
    help="Webhook URL for the results of retrainings [MRMODEL_NOTIFY_URL].",
)
def main(kind: str, slots: tuple[str, ...], lost_after: float, notify: str | None) -> None:
    """Set up the Prefect server of PREFECT_API_URL."""
    require_server()
    with get_client(sync_client=True) as client:
        for name in POOLS:
            create_pool(client, name, kind)
            click.echo(f"work pool {name} ({kind})")
        for slot in slots:
            client.upsert_global_concurrency_limit_by_name(slot, limit=1)
            click.echo(f"limit {slot}: one stage")
        create_automation(client, lost_workers(lost_after))
        click.echo(f"automation: {LOST}")
        if notify:
            create_automation(client, notification(save_webhook(notify)))
            click.echo(f"automation: {NOTIFY}")


if __name__ == "__main__":
    with exit_codes():
        main()
