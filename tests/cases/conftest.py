from pathlib import Path

import pytest

from tests.cases.models import write_model, write_short_video


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small untrained model, `model`, and `video.mp4`; only to be read."""
    folder = tmp_path_factory.mktemp("made")
    write_model(folder / "model")
    write_short_video(folder / "video.mp4")
    return folder
