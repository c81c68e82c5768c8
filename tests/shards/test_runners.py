"""Task runners by name."""

import importlib
import os
import sys

import pytest
from prefect.task_runners import ProcessPoolTaskRunner

from flows.shards import task_runner
from mrmodel.config.schema import ShardSettings
from mrmodel.errors import ConfigError


def settings(runner, address=None):
    return ShardSettings(count=3, runner=runner, address=address)


AT_ONCE = min(3, os.cpu_count())


def test_a_pool_of_processes_is_no_larger_than_the_machine():
    assert task_runner(settings("processes"), 3) == ProcessPoolTaskRunner(max_workers=AT_ONCE)


@pytest.mark.services
def test_a_cluster_on_this_machine_is_no_larger_than_it():
    assert task_runner(settings("dask"), 3).cluster_kwargs["n_workers"] == AT_ONCE
    assert task_runner(settings("ray"), 1).init_kwargs["num_cpus"] == 1


@pytest.mark.services
@pytest.mark.parametrize(("runner", "kind"), [("dask", "DaskTaskRunner"), ("ray", "RayTaskRunner")])
def test_a_cluster_elsewhere_is_known_by_its_address(runner, kind):
    made = task_runner(settings(runner, "10.0.0.1:9"), 3)
    assert isinstance(made, getattr(importlib.import_module(f"prefect_{runner}"), kind))
    assert made.address == "10.0.0.1:9"


@pytest.mark.parametrize(
    ("runner", "module"), [("dask", "prefect_dask.task_runners"), ("ray", "ray")]
)
def test_a_missing_extra_is_named(monkeypatch, runner, module):
    monkeypatch.setitem(sys.modules, module, None)  # As if it were not installed.
    words = (
        rf"extract_shards.runner = '{runner}': needs the extra: pip install 'mrmodel\[{runner}\]'"
    )
    with pytest.raises(ConfigError, match=words):
        task_runner(settings(runner), 3)
