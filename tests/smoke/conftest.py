from pathlib import Path

import pytest

from tests.project import Project


@pytest.fixture
def test_video(reproduced: Project) -> Path:
    return sorted((reproduced.folder / "data/miniature/videos").glob("test-*.mp4"))[0]
