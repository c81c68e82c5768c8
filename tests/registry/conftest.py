"""A project whose models can be registered."""

import shutil
from pathlib import Path

import pytest

from tests.project import Project
from tests.registry.answers import AnswersOnce


@pytest.fixture(scope="session")
def answers_once(tmp_path_factory: pytest.TempPathFactory) -> AnswersOnce:
    """What models of this test run answered."""
    return AnswersOnce(tmp_path_factory)


@pytest.fixture
def project(
    reproduced: Project,
    empty_mlflow: Path,
    answers_once: AnswersOnce,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Project:
    """A copy of the reproduced project, as the current folder; its registry is empty."""
    for name in ("MLFLOW_TRACKING_URI", "MRMODEL_REGISTRY", "MRMODEL_GIT_URL", "MRMODEL_WORK_DIR"):
        monkeypatch.delenv(name, raising=False)
    copied = reproduced.copy(tmp_path / "clone", "cache", "mlflow.db", "mlartifacts")
    shutil.copy(empty_mlflow, copied.folder / ".mrmodel")
    monkeypatch.setattr("mrmodel.registry.promote.run_smoke", answers_once)
    monkeypatch.chdir(copied.folder)
    return copied
