"""Fixtures of more than one folder of tests."""

import gc
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mrmodel.startup import collect_garbage_rarely
from mrmodel.tracking.experiment import open_experiment
from tests.project import Project, made_once
from tests.services import mlflow_server, own_s3, postgres, prefect_server, s3, s3_env

__all__ = [
    "mlflow_server",
    "own_s3",
    "postgres",
    "prefect_server",
    "reproduced",
    "s3",
    "s3_env",
]

# On a busy machine a property takes longer and holds all the same: no limit of seconds to it.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# A test that asks for one of these has the marker `services`. Where a fixture asks for one by name
# (`getfixturevalue`), its parameter has the marker. `prefect` is a temporary server.
SERVERS = frozenset(__all__) - {"reproduced"} | {"prefect"}
# Of the tests that were collected: their files, and those that `make test` leaves out for what they
# need (docs/reference/tests.md).
COLLECTED = pytest.StashKey[set[str]]()
OUTSIDE = pytest.StashKey[set[str]]()
# The files that take minutes.
LONGEST = frozenset(
    {
        "tests/flows/test_month.py",
        "tests/flows/test_on_workers.py",
        "tests/server/test_schema.py",
    }
)
# Changes to the preset in `reproduced`: its runs are recorded.
REPRODUCED = {"tracking": {"enabled": True}}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """With few runs of the garbage collector, and later ones leave out what was imported here.

    Imports make millions of objects, and all of them stay. Scanning them again and again took
    half of the time of collecting the tests, and half a second at each `gc.collect()` later.
    """
    collect_garbage_rarely()
    try:
        return (yield)
    finally:
        gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    """Mark the tests that need servers, note what `make test` leaves out, and order the files."""
    for item in items:
        if isinstance(item, pytest.Function) and SERVERS.intersection(item.fixturenames):
            item.add_marker("services")
    marked = [
        item for item in items if {"services", "infra"} & {m.name for m in item.iter_markers()}
    ]
    config.stash[OUTSIDE] = {item.nodeid for item in marked}
    config.stash[COLLECTED] = {item.nodeid.partition("::")[0] for item in items}
    yield  # Pytest deselects by markers.
    items[:] = _nobody_waits(items)


def _nobody_waits(items: list[pytest.Item]) -> list[pytest.Item]:
    """The longest files first, and of those that need `reproduced` one, which makes it for all.

    A long file that starts last has one process of the test run at work, and the others wait for
    it. So they would for a minute if files that need `reproduced` began side by side: the others of
    these come half-way.
    """
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    names = sorted(files, key=lambda name: name not in LONGEST)
    needs = {
        name
        for name, tests in files.items()
        if any("reproduced" in getattr(test, "fixturenames", ()) for test in tests)
    }
    first, *others = [name for name in names if name in needs] or [""]
    without = [name for name in names if name not in needs]
    half = len(without) // 2
    order = [first, *without[:half], *others, *without[half:]]
    return [item for name in order for item in files.get(name, [])]


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with all tables and no run, to be copied: MLflow makes it in seconds."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            folder.mkdir()
            open_experiment("another", folder)

    return made_once(tmp_path_factory, "empty-mlflow", make) / "mlflow.db"


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Project:
    """The miniature preset after an undisturbed `dvc repro`.

    One is made for all processes of a test run; each file of tests changes a copy of its own.
    """

    def make(folder: Path) -> None:
        project = Project(folder)
        project.apply("miniature", REPRODUCED)
        project.commit()
        (folder / ".mrmodel").mkdir(exist_ok=True)
        shutil.copy(empty_mlflow, folder / ".mrmodel")
        project.run("dvc", "repro", patience_s=3600)  # All of a test run wait for it.

    folder = made_once(tmp_path_factory, "reproduced", make)
    return Project.at(folder).copy(tmp_path_factory.mktemp("project") / "clone")
