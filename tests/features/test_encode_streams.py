"""A video is decoded once for all streams, and each stream gets the rows that it gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mrmodel.features.extraction.encode import encode_streams, encode_video
from mrmodel.video.decoder import Decoder
from mrmodel.video.sampling import FrameSampling
from tests.video.fixtures import write_video
from tests.video.test_damaged_files import overwrite

B_FRAMES = {"bf": "3", "b_strategy": "0", "b-pyramid": "none"}
SAMPLINGS = (
    FrameSampling(1, (80, 48)),
    FrameSampling(5, (64, 40), "middle", "area"),
    FrameSampling(4, (32, 32), "hero", "bilinear", "crop"),
)


class Pixels:
    """Sums over the pictures of a clip, and its corners: any other picture gives another row."""

    def __init__(self, sampling: FrameSampling) -> None:
        self.sampling = sampling

    def encode_clips(self, frames: np.ndarray) -> np.ndarray:
        values = frames.astype(np.float32) / 255
        return np.concatenate(
            [values.mean(axis=(2, 3)).reshape(len(frames), -1), values[:, :, 0, 0, :].mean(axis=1)],
            axis=1,
        )


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The file of each pass over frames so far."""
    found: list[Path] = []
    frames = Decoder.frames

    def counted(self: Decoder, *arguments: object) -> object:
        found.append(self.path)
        return frames(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "frames", counted)
    return found


def write(path: Path) -> Path:
    return write_video(path, 230, 24, encoding=B_FRAMES)


def assert_as_alone(path: Path, passes: list[Path], expected_passes: int) -> None:
    encoders = [Pixels(sampling) for sampling in SAMPLINGS]
    together = encode_streams(path, encoders, 1.0)  # type: ignore[arg-type]
    assert len(passes) == expected_passes
    for encoder, found in zip(encoders, together, strict=True):
        alone = encode_video(path, encoder, 1.0)  # type: ignore[arg-type]
        assert found.rows.tobytes() == alone.rows.tobytes()
        assert found.report == alone.report


@pytest.mark.parametrize("ending", ["mp4", "ts"])
def test_one_pass_gives_each_stream_its_rows(
    tmp_path: Path, passes: list[Path], ending: str
) -> None:
    assert_as_alone(write(tmp_path / f"video.{ending}"), passes, expected_passes=1)


def test_a_damaged_file_is_read_once_per_stream(tmp_path: Path, passes: list[Path]) -> None:
    path = write(tmp_path / "video.mp4")
    overwrite(path, path.stat().st_size // 2, 4096)
    assert_as_alone(path, passes, expected_passes=1 + len(SAMPLINGS))
