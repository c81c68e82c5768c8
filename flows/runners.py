"""Task runners by their name in params.yaml; an extra is imported when its runner is asked for."""

from __future__ import annotations

from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner

from mrmodel.config import ShardSettings
from mrmodel.errors import ConfigError
from mrmodel.processes import tasks_at_once


def task_runner(settings: ShardSettings, tasks: int) -> TaskRunner[Any]:
    """The runner for so many equal tasks: a cluster that runs already, or one on this machine.

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

    # A task starts processes of its own, so a worker has one task at a time.
    local = {"n_workers": at_once, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    runner: TaskRunner[Any] = (
        DaskTaskRunner(cluster_kwargs={"host": "127.0.0.1", **local})
        if settings.address is None
        else DaskTaskRunner(address=settings.address)
    )
    return runner


def _ray(settings: ShardSettings, at_once: int) -> TaskRunner[Any]:
    # prefect_ray itself imports Ray later, where its absence would be told less clearly.
    import ray  # noqa: F401
    from prefect_ray.task_runners import RayTaskRunner

    local = {"num_cpus": at_once, "include_dashboard": False}
    runner: TaskRunner[Any] = RayTaskRunner(
        address=settings.address, init_kwargs=local if settings.address is None else None
    )
    return runner
