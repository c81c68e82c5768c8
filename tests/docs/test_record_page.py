"""What docs/reference/mlflow_record.md promises is in the record of a finished project."""

import re
import socket
import subprocess
import time
import urllib.request
from fnmatch import fnmatch

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from infra.local.process import free_ports
from tests.docs.test_commands import commands_of
from tests.project import ROOT, Project

PAGE = "reference/mlflow_record.md"
# Named in the table and not something that a run holds.
ELSEWHERE = {"params.yaml", "dvc.lock", "reports/training/*.csv", "@", "_at_", "seed"}


@pytest.fixture(scope="module")
def names(reproduced: Project) -> set[str]:
    """Of all params, metrics, tags and artifacts in the record."""
    client = MlflowClient(f"sqlite:///{reproduced.folder / '.mrmodel/mlflow.db'}")
    experiment = client.get_experiment_by_name("mrmodel")
    found: set[str] = set()
    for run in client.search_runs([experiment.experiment_id]):
        found |= {*run.data.params, *run.data.metrics, *run.data.tags}
        found |= set(artifacts(client, run, None))
    return found


def artifacts(client: MlflowClient, run: Run, folder: str | None) -> list[str]:
    listed = client.list_artifacts(run.info.run_id, folder)
    below = [path for one in listed if one.is_dir for path in artifacts(client, run, one.path)]
    return [*(one.path for one in listed if not one.is_dir), *below]


def test_every_name_in_the_table_is_in_the_record(names: set[str]) -> None:
    text = (ROOT / "docs" / PAGE).read_text()
    rows = [line.split("|")[2] for line in text.splitlines() if re.match(r"\| (?!what|-)", line)]
    shown = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    promised = [re.sub(r"<\w+>", "*", name) for name in shown if name not in ELSEWHERE]
    assert len(promised) > 25
    # It is there when files differ from the revision, or when a stage fails.
    sometimes = {"git.changed", "error"}
    missing = [
        name
        for name in promised
        if name not in sometimes and not any(fnmatch(one, name) for one in names)
    ]
    assert missing == []


@pytest.mark.services
def test_the_command_shows_the_record(reproduced: Project) -> None:
    (command,) = commands_of(PAGE)
    (port,) = free_ports(1)
    process = reproduced.start("sh", "-c", f"exec {command} --port {port}")
    try:
        deadline = time.monotonic() + 120
        while not listens(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as answer:
            assert answer.read() == b"OK"
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
