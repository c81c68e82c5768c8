"""Fixtures of shards: Prefect with a database of its own, and a clone with its videos."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.project import Project
from tests.video.fixtures import write_audio, write_video


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """Prefect for flows that run in this process, with a temporary server."""
    from prefect.testing.utilities import prefect_test_harness  # Loads Prefect's whole server.

    with pytest.MonkeyPatch.context() as patch:
        # Ray would write a token into the home of whoever runs the tests.
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        with prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature preset with 13 videos, one of which holds sound only."""
    project = Project(tmp_path_factory.mktemp("flows") / "clone")
    changes = {"features": {"max_failed_share": 0.2}}
    project.apply("miniature", changes)
    project.commit()
    videos = project.folder / "data" / "miniature" / "videos"
    videos.mkdir(parents=True)
    for number in range(12):
        write_video(videos / f"v{number:02}.mp4", 20 + 5 * number)
    write_audio(videos / "sound.mp4")
    return project
