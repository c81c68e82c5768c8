"""Studies in a journal and in PostgreSQL, whose trials need no model."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from mrmodel import presets
from mrmodel.config.schema import parse_config
from mrmodel.tune.storage import open_storage
from mrmodel.tune.study import Facts, TrialQueue
from tests.project import ROOT
from tests.services import PostgresService


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of the test's own as the current one; workers find this repository's tests."""
    for name in ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI", "MRMODEL_PARENT_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["journal", pytest.param("postgresql", marks=pytest.mark.services)])
def address(request: pytest.FixtureRequest, no_servers: Path) -> str:
    """Of an empty storage."""
    if request.param == "journal":
        return str(no_servers / "journal.log")
    postgres: PostgresService = request.getfixturevalue("postgres")
    return postgres.database(f"optuna_{uuid4().hex[:12]}")


def make_study(
    address: str, objective: str, name: str = "main", attempts: int = 3, **about: Any
) -> TrialQueue:
    """A study of one of `tests.tune.objectives`."""
    config = parse_config(yaml.safe_load(presets.render("miniature"))).model_dump()
    place = f"tests.tune.objectives:{objective}"
    about = {"seconds": 0.0, "moods": {}, **about}
    facts = Facts(place, config, about, "unused", f"tune {name}", attempts)
    return TrialQueue.create(open_storage(address), name, facts, 1, seed=7)
