"""What Prefect's own workers make of the base job templates; a program that prints it as JSON.

The packages of the workers lie in a folder of their own (see `make test-services`): Prefect imports
all of them that it can find, which would cost every server and worker of the tests seconds.
"""

import asyncio
import json
import sys
from typing import Any
from uuid import uuid4

from docker.models.containers import _create_container_args
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.workers.base import BaseJobConfiguration, BaseWorker
from prefect_docker.worker import DockerWorker

from tests.project import ROOT


async def configuration(pool: str, kind: str, variables: dict[str, Any]) -> BaseJobConfiguration:
    """The configuration of a flow run of this pool, as its worker prepares it."""
    template = json.loads((ROOT / f"infra/work_pools/{pool}-{kind}.json").read_text())
    worker = BaseWorker.get_worker_class_from_type(kind)
    assert worker is not None
    made: BaseJobConfiguration = await worker.job_configuration.from_template_and_values(
        template, variables, client=get_client()
    )
    flow = Flow(id=uuid4(), name="run-stage")
    run = FlowRun(id=uuid4(), name="finetune@sg_detr", flow_id=flow.id)
    made.prepare_for_flow_run(run, flow=flow, worker_name="a-worker")
    return made


class Engine:
    """The version of Docker is all that the worker asks of it beforehand."""

    def version(self) -> dict[str, str]:
        return {"Version": "28.0.0"}


def container(made: Any) -> dict[str, Any]:
    """What the Docker worker asks of the Docker API for this configuration."""
    settings = DockerWorker("cpu")._build_container_settings(Engine(), made)
    created: dict[str, Any] = _create_container_args({**settings, "version": "1.47"})
    return created


def rendered(pool: str, kind: str, variables: dict[str, Any]) -> Any:
    """A Job, the arguments of a container, or the configuration of a process."""
    made: Any = asyncio.run(configuration(pool, kind, variables))
    if kind == "kubernetes":
        return made.job_manifest
    return container(made) if kind == "docker" else made.model_dump(mode="json")


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    json.dump([rendered(*one) for one in asked], sys.stdout, default=dict)
