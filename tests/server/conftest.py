"""A library of three tiny videos with an untrained model, and a server of it in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mrmodel.library.adder import AddSettings
from mrmodel.library.library import Library
from mrmodel.server.app import build_app
from mrmodel.server.server import Server
from mrmodel.server.settings import ServerSettings
from tests.cases.models import write_model
from tests.library.videos import write_videos

HERE = "http://localhost"


def error_of(answer: Any, status: int) -> str:
    """The code of an error, after a look at all of it."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert answer.headers["X-Request-Id"] == error["request_id"]
    assert error["message"]
    code: str = error["code"]
    return code


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`videos`, `model` and `library`; only to be read."""
    base = tmp_path_factory.mktemp("served")
    write_videos(base / "videos", {"a.mp4": 40, "b.mp4": 80, "c.mp4": 120})
    write_model(base / "model")
    Library(base / "library", base / "model").add([base / "videos"], AddSettings(workers=1))
    return base


@pytest.fixture(scope="package")
def server(made: Path) -> Server:
    return Server(ServerSettings(made / "library", str(made / "model")))


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(build_app(server), base_url=HERE) as client:
        yield client


@pytest.fixture(scope="package")
def ids(client: TestClient) -> dict[str, str]:
    """Id of each video by its name."""
    return {one["name"]: one["id"] for one in client.get("/v1/videos").json()["videos"]}
