"""A sharded extraction as a Prefect flow: one task per shard, on processes, Dask or Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner

from mrmodel.config.schema import ShardSettings
from mrmodel.errors import ConfigError
from mrmodel.orchestrate.result_store import (
    ShardedStream,
    ShardInterrupted,
    ShardRequest,
    StageRequest,
)
from mrmodel.orchestrate.sharding import (
    ShardReport,
    ShardRounds,
    make_shard,
    shard_folder,
    shards_markdown,
)
from mrmodel.processes import tasks_at_once
from mrmodel.storage import open_store


def task_runner(settings: ShardSettings, tasks: int) -> TaskRunner[Any]:
    """A runner for `tasks` equal tasks: an existing cluster, or one on this machine.

    Raises:
        ConfigError: the runner's extra is not installed.
    """
    at_once = tasks_at_once(tasks)
    if settings.runner == "processes":
        return ProcessPoolTaskRunner(max_workers=at_once)
    try:
        return _dask(settings, at_once) if settings.runner == "dask" else _ray(settings, at_once)
    except ModuleNotFoundError as error:
        rule = f"needs the extra: pip install 'mrmodel[{settings.runner}]' ({error})"
        raise ConfigError("orchestrate.extract_shards.runner", settings.runner, rule) from None


def _dask(settings: ShardSettings, at_once: int) -> TaskRunner[Any]:
    from prefect_dask.task_runners import DaskTaskRunner

    # A task starts its own processes, so a worker runs one task at a time.
    local = {"n_workers": at_once, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    runner: TaskRunner[Any] = (
        DaskTaskRunner(cluster_kwargs={"host": "127.0.0.1", **local})
        if settings.address is None
        else DaskTaskRunner(address=settings.address)
    )
    return runner


def _ray(settings: ShardSettings, at_once: int) -> TaskRunner[Any]:
    # prefect_ray imports Ray only later, with a less clear error if it is missing.
    import ray  # noqa: F401
    from prefect_ray.task_runners import RayTaskRunner

    local = {"num_cpus": at_once, "include_dashboard": False}
    runner: TaskRunner[Any] = RayTaskRunner(
        address=settings.address, init_kwargs=local if settings.address is None else None
    )
    return runner


_PAUSE_S = 2.0


def may_help(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Whether a retry of a failed task may help."""
    return isinstance(state.result(raise_on_failure=False), ShardInterrupted)


@task(cache_policy=NO_CACHE, retry_condition_fn=may_help, retry_delay_seconds=_PAUSE_S)
def make(
    order: ShardRequest, where: Path | StageRequest, result_store: str, endpoint: str | None
) -> ShardReport:
    """Extract one shard; see `make_shard`."""
    with shard_folder(where, order) as clone:
        return make_shard(order, clone, open_store(result_store, endpoint))


@flow(flow_run_name="extract {sharded.stream} in {sharded.count} shards")
def extract_shards(
    sharded: ShardedStream,
    where: Path | StageRequest,
    result_store: str,
    settings: ShardSettings,
    attempts: int = 3,
    endpoint: str | None = None,
) -> list[ShardReport]:
    """Extract all shards of a stream that are not in the result store yet.

    Args:
        sharded: the stream.
        where: a folder with the code of the revision and all videos, or the request of the stage:
            then every shard has its own clone.
        result_store: URL of the result store.
        settings: of the engine; its shard count is replaced by `sharded.count`.
        attempts: maximum number, for shards whose process or process pool was killed.
        endpoint: URL of the S3 server; None: `MRMODEL_S3_ENDPOINT`.

    Raises:
        ShardFailed: a shard ended with an error of its own.
        ShardInterrupted: a shard was killed too often.
    """
    rounds = ShardRounds(sharded, open_store(result_store, endpoint), attempts)
    one = make.with_options(retries=attempts - 1)
    while orders := rounds.ready():
        with task_runner(settings, len(orders)) as runner:
            started = [
                (
                    order,
                    runner.submit(
                        one.with_options(task_run_name=str(order)),
                        {
                            "order": order,
                            "where": where,
                            "result_store": result_store,
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
                    # The exception for a dead worker depends on the engine.
                    rounds.broke(order, error)
    reports = [rounds.reports[index] for index in sorted(rounds.reports)]
    shown = shards_markdown(reports)
    key = "shards-" + sharded.stream.replace(".", "-").replace("_", "-")
    create_markdown_artifact(shown, key, f"Shards of {sharded.stream}")
    get_run_logger().info("\n%s", shown)
    return reports
