"""A project whose models can be registered."""

from pathlib import Path

import pytest

from tests.project import Project


@pytest.fixture
def project(reproduced: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the reproduced project, as the current folder; its registry is empty."""
    for name in ("MLFLOW_TRACKING_URI", "MRMODEL_REGISTRY", "MRMODEL_GIT_URL", "MRMODEL_WORK_DIR"):
        monkeypatch.delenv(name, raising=False)
    copied = reproduced.copy(tmp_path / "clone", "cache", "mlflow.db", "mlartifacts")
    monkeypatch.chdir(copied.folder)
    return copied
