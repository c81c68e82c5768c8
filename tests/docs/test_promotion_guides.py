"""The commands of the guides about promotion run as they stand there, one after another.

What they do is tested in tests/registry/test_promote.py, which always runs.
"""

import shutil
from pathlib import Path

import mlflow
import pytest

from tests.docs.test_commands import blocks_of, commands_of
from tests.project import Project
from tests.registry.evaluations import forget_a_query


@pytest.fixture(scope="module")
def project(
    reproduced: Project, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """A copy of the reproduced project with a registry of its own."""
    folder = tmp_path_factory.mktemp("promotion") / "clone"
    copied = reproduced.copy(folder, "cache", "mlflow.db", "mlartifacts")
    shutil.copy(empty_mlflow, folder / ".mrmodel")
    return copied


@pytest.mark.slow
def test_promote(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A whole training: tests/registry/test_lineage.py has seen it.
    lines = [one for one in commands_of("howto/promote.md") if "lineage reproduce" not in one]
    output = [project.run("sh", "-c", line) for line in lines]
    assert "champion: version 1" in "".join(output)
    assert output[-1] == "everything agrees with the pointer\n"
    database = f"sqlite:///{project.folder / '.mrmodel/mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    mlflow.set_tracking_uri(database)
    try:
        exec(blocks_of("howto/promote.md", "python")[0], {})
    finally:
        mlflow.set_tracking_uri(None)
    assert "'vid': 'example'" in capsys.readouterr().out


@pytest.mark.slow
def test_roll_back(project: Project) -> None:
    """After a second promotion, which resets the baseline here."""
    forget_a_query(project.folder, "moment_detr.finetuned")
    project.run("mrmodel", "registry", "register")
    project.run("mrmodel", "registry", "promote", "--reset-baseline", "one query was wrong")
    output = [project.run("sh", "-c", line) for line in commands_of("howto/roll_back.md")]
    assert "champion: version 1 (before: 2)" in output[0]
    assert "rollback  version 1, champion 2" in output[-1]
    assert "misses everything after minute two" in output[-1]
