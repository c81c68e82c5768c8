from pathlib import Path

import pytest

from mrmodel.errors import ConfigError
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.processes import hide_secrets, hide_user, secrets_of


def test_a_repository_is_enough(tmp_path: Path) -> None:
    environment = RuntimeEnvironment.from_environment({"MRMODEL_GIT_URL": str(tmp_path)})
    assert environment.remote is None
    assert environment.cache == tmp_path / ".dvc/cache", (
        "results must be where the person's DVC looks"
    )
    assert environment.state == tmp_path / ".mrmodel", "an interrupted stage goes on from its state"
    assert Path(environment.result_store).is_relative_to(tmp_path / ".mrmodel")


def test_a_worker_of_its_own(tmp_path: Path) -> None:
    environment = RuntimeEnvironment.from_environment(
        {
            "MRMODEL_GIT_URL": "https://user:hunter2@git.example/team/mrmodel.git",
            "MRMODEL_DVC_REMOTE": "s3://bucket/dvc/",
            "MRMODEL_S3_ENDPOINT": "http://127.0.0.1:8333",
            "MRMODEL_WORK_DIR": str(tmp_path),
        }
    )
    assert environment.result_store == "s3://bucket/dvc-handover"
    assert {environment.cache.parent, environment.state.parent, environment.clones.parent} == {
        tmp_path
    }
    assert environment.git_shown == "https://git.example/team/mrmodel.git"


@pytest.mark.parametrize("missing", ["MRMODEL_WORK_DIR", "MRMODEL_DVC_REMOTE"])
def test_a_url_needs_more(tmp_path: Path, missing: str) -> None:
    given = {
        "MRMODEL_GIT_URL": "https://git.example/mrmodel.git",
        "MRMODEL_DVC_REMOTE": "s3://bucket/dvc",
        "MRMODEL_WORK_DIR": str(tmp_path),
    }
    del given[missing]
    with pytest.raises(ConfigError, match=f"{missing} = None: is not set"):
        RuntimeEnvironment.from_environment(given)


def test_no_repository_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"MRMODEL_GIT_URL.*no git repository"):
        RuntimeEnvironment.from_environment({})


def test_secrets_are_hidden() -> None:
    secrets = secrets_of(
        {
            "AWS_SECRET_ACCESS_KEY": "planted-secret",
            "MRMODEL_GIT_URL": "https://me:token-of-mine@git.example/x",
            "HOME": "/home/me",
            "SHORT_TOKEN": "abc",
        }
    )
    line = "put planted-secret with token-of-mine in /home/me, abc"
    assert hide_secrets(line, secrets) == "put *** with *** in /home/me, abc"
    assert hide_user("ssh://me:x@host/y and plain") == "ssh://host/y and plain"
