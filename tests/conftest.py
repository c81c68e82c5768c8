"""Fixtures of more than one folder of tests."""

import os
import shutil

import pytest

from mrmodel.files import one_at_a_time
from tests.project import Project
from tests.services import mlflow_server, own_s3, postgres, prefect_server, s3, s3_env

__all__ = ["mlflow_server", "own_s3", "postgres", "prefect_server", "reproduced", "s3", "s3_env"]

# A test that asks for one of these has the marker `services`. Where a fixture asks for one by name
# (`getfixturevalue`), its parameter has the marker.
SERVERS = frozenset(__all__) - {"reproduced"}
# Changes to the preset in `reproduced`: its runs are recorded.
REPRODUCED = {"tracking": {"enabled": True}}


@pytest.hookimpl(tryfirst=True)  # Before pytest deselects by markers.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need servers."""
    for item in items:
        if isinstance(item, pytest.Function) and SERVERS.intersection(item.fixturenames):
            item.add_marker("services")


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature preset after an undisturbed `dvc repro`.

    One is made for all processes of a test run; each file of tests changes a copy of its own.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / "reproduced", shared / "reproduced.done"
    with one_at_a_time(shared / "reproduced.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            project = Project(folder)
            project.apply("miniature", REPRODUCED)
            project.commit()
            project.run("dvc", "repro")
            done.touch()
    return Project.at(folder).copy(tmp_path_factory.mktemp("project") / "clone")
