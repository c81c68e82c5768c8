"""A picture at a time is the one that a player shows then."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrmodel.errors import VideoError
from mrmodel.export.stills import write_still
from tests.video.fixtures import read_number, rotate, write_video


def number_at(video: Path, time_s: float, target: Path) -> int:
    write_still(video, time_s, 320, target)
    with Image.open(target) as image:
        assert image.size == (320, 192)
        return read_number(np.asarray(image))


def test_it_shows_the_frame_of_that_time(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", 40, gop=12)
    times = {0.0: 0, 0.95: 9, 1.0: 10, 2.55: 25, 3.9: 39, 100.0: 39}
    target = tmp_path / "still.jpg"
    assert {time_s: number_at(video, time_s, target) for time_s in times} == times


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    video = rotate(write_video(tmp_path / "a.mp4", 5, turned=1), 1)
    assert number_at(video, 0.2, tmp_path / "still.jpg") == 2


def test_what_is_no_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match="invalid_data"):
        write_still(tmp_path / "a.mp4", 0.0, 320, tmp_path / "still.jpg")
