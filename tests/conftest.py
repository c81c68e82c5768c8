"""Fixtures of more than one folder of tests."""

import pytest

from tests.project import Project
from tests.services import mlflow_server, postgres, prefect_server, s3

__all__ = ["mlflow_server", "postgres", "prefect_server", "reproduced", "s3"]


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature preset after an undisturbed `dvc repro`."""
    project = Project(tmp_path_factory.mktemp("project") / "clone")
    project.apply("miniature")
    project.commit()
    project.run("dvc", "repro")
    return project
