"""One DVC stage as a Prefect flow: the unit that a worker of a pool runs."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.states import Crashed, Failed

from mrmodel.config.schema import ShardSettings
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.markdown import stage_markdown
from mrmodel.orchestrate.result_store import (
    ShardedStream,
    ShardFailed,
    ShardInterrupted,
    StageRequest,
    StageResult,
)
from mrmodel.orchestrate.stage_process import Listener, StageFailed, StageKilled, run_stage_process

# A killed flow cannot release its slot, so the GPU is blocked this long. Prefect's minimum.
_LEASE_S = 60.0


@flow(flow_run_name="{stage}")
def run_stage(
    stage: str,
    rev: str,
    locks: dict[str, str] | None = None,
    timeout_s: float | None = None,
    shards: dict[str, Any] | None = None,
    parent_run: str | None = None,
) -> StageResult | State[Any]:
    """Run a stage in a fresh clone on this machine; see `mrmodel.orchestrate.stage_runner`.

    Args:
        stage: e.g. ``finetune@sg_detr``.
        rev: revision that the clone checks out.
        locks: path -> text of lock files; None: as committed.
        timeout_s: the stage is killed after this time.
        shards: `ShardSettings` of a sharded extraction; None: it is not sharded.
        parent_run: id of the MLflow run of the whole pipeline.
    """
    order = StageRequest(stage, rev, locks or {}, timeout_s, shards, parent_run)
    with gpu_slot():
        try:
            sharded = spread(order) if shards else None
            result = run_stage_process(order, FlowListener(stage), sharded)
        except (StageKilled, ShardInterrupted) as error:
            return Crashed(message=str(error))
        except (StageFailed, ShardFailed) as error:
            return Failed(message=str(error))
    create_markdown_artifact(stage_markdown(result), artifact_key(stage), result.stage)
    return result


def spread(order: StageRequest) -> ShardedStream:
    """Extract the shards on other workers, or in other processes of this one."""
    # Most stages have no shards, and these imports (DVC, feature extraction) take seconds.
    from flows.shards import extract_shards
    from mrmodel.orchestrate.sharding import sharded_stream

    settings = ShardSettings(**(order.shards or {}))
    environment = RuntimeEnvironment.from_environment()
    sharded = sharded_stream(order, settings)
    extract_shards(
        sharded, order, environment.result_store, settings, endpoint=environment.endpoint
    )
    return sharded


class FlowListener(Listener):
    """Sends output lines to the log of the flow run, and progress to an artifact."""

    def __init__(self, stage: str) -> None:
        self._stage, self._log = stage, get_run_logger()
        self._artifact: UUID | None = None

    def line(self, text: str) -> None:
        """Log a line."""
        self._log.info(text)

    def event(self, event: dict[str, Any]) -> None:
        """Log a step; show progress."""
        if event["event"] == "step":
            self._log.info("%s: %s", self._stage, event["name"])
        elif event["event"] == "progress" and event["total"]:
            percent = min(100.0, 100.0 * event["done"] / event["total"])
            if self._artifact is None:
                key = f"{artifact_key(self._stage)}-progress"
                self._artifact = _uuid(create_progress_artifact(percent, key, event["name"]))
            else:
                update_progress_artifact(self._artifact, percent, event["name"])


def _uuid(created: Any) -> UUID:
    """Prefect types its calls as sync or async; in a sync flow they return directly."""
    assert isinstance(created, UUID)
    return created


def gpu_slot() -> AbstractContextManager[None]:
    """The concurrency slot of this worker's GPU; does nothing if there is none."""
    name = os.environ.get("MRMODEL_GPU_SLOT")
    if not name:
        return nullcontext()
    return concurrency(
        name,
        strict=True,  # a missing limit must not mean "no limit"
        lease_duration=_LEASE_S,
        # A training must not end because the server was unreachable for a minute.
        raise_on_lease_renewal_failure=False,
    )


def artifact_key(stage: str) -> str:
    """Prefect allows lower-case letters, digits and dashes."""
    return "".join(letter if letter.isalnum() else "-" for letter in stage.lower()).strip("-")
