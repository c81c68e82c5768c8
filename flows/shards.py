"""An extraction in shards as a Prefect flow: one task a shard, on processes, Dask or Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.runners import task_runner
from mrmodel.config import ShardSettings
from mrmodel.orchestrate.order import StageOrder
from mrmodel.orchestrate.rounds import ShardRounds, shards_markdown
from mrmodel.orchestrate.sharded import ShardedStream, ShardInterrupted, ShardOrder
from mrmodel.orchestrate.shards import ShardReport, make_shard
from mrmodel.storage import open_store

_PAUSE_S = 2.0


def may_help(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Whether another try of a task that failed may help."""
    return isinstance(state.result(raise_on_failure=False), ShardInterrupted)


@task(cache_policy=NO_CACHE, retry_condition_fn=may_help, retry_delay_seconds=_PAUSE_S)
def make(
    order: ShardOrder, where: Path | StageOrder, handover: str, endpoint: str | None
) -> ShardReport:
    """Make one shard; see `make_shard`."""
    from mrmodel.orchestrate.sharding import shard_folder  # DVC's import takes a second.

    with shard_folder(where, order) as clone:
        return make_shard(order, clone, open_store(handover, endpoint))


@flow(flow_run_name="extract {sharded.stream} in {sharded.count} shards")
def extract_shards(
    sharded: ShardedStream,
    where: Path | StageOrder,
    handover: str,
    settings: ShardSettings,
    attempts: int = 3,
    endpoint: str | None = None,
) -> list[ShardReport]:
    """Have all shards of a stream made that are not in the hand-over store yet.

    Args:
        sharded: the stream.
        where: a folder with the code of the revision and all videos, or the order of the stage:
            then every shard has a clone of its own.
        handover: address of the store.
        settings: the engine. Its count is `sharded.count`.
        attempts: of a shard whose process, or whose pool of processes, was killed.
        endpoint: address of the S3 server; None: `MRMODEL_S3_ENDPOINT`.

    Raises:
        ShardFailed: a shard ended with an error of its own.
        ShardInterrupted: a shard was killed too often.
    """
    rounds = ShardRounds(sharded, open_store(handover, endpoint), attempts)
    one = make.with_options(retries=attempts - 1)
    while orders := rounds.next():
        with task_runner(settings, len(orders)) as runner:
            started = [
                (
                    order,
                    runner.submit(
                        one.with_options(task_run_name=str(order)),
                        {
                            "order": order,
                            "where": where,
                            "handover": handover,
                            "endpoint": endpoint,
                        },
                    ),
                )
                for order in orders
            ]
            for order, future in started:
                try:
                    rounds.made(order, future.result())
                except Exception as error:
                    # What a dead worker raises depends on the engine; what helps does not.
                    rounds.broke(order, error)
    reports = [rounds.reports[index] for index in sorted(rounds.reports)]
    shown = shards_markdown(reports)
    key = "shards-" + sharded.stream.replace(".", "-").replace("_", "-")
    create_markdown_artifact(shown, key, f"Shards of {sharded.stream}")
    get_run_logger().info("\n%s", shown)
    return reports
