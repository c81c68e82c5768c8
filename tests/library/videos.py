"""Libraries of tiny videos for tests, without a model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np

from mrmodel.components import ENCODERS
from mrmodel.encoders.base import Frames, Rows
from mrmodel.encoders.tiny import TinyVideoEncoder
from mrmodel.features.extraction.job_runner import describe_stream
from mrmodel.features.writer import SHARD_BYTES
from mrmodel.library.adder import Adder, AddReport, AddSettings, find_videos
from mrmodel.library.folder import LibraryFolder
from tests.video.fixtures import write_video

# Names the file of `Noting`.
NOTES = "MRMODEL_TEST_NOTES"
CLIP_LEN_S = 2.0


def write_videos(folder: Path, lengths: dict[str, int]) -> Path:
    """Videos of so many frames, ten a second, each with other pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in lengths.items():
        write_video(folder / name, count)
    return folder


def add(
    library: Path,
    paths: Iterable[Path],
    encoder: str = "tiny.video",
    shard_bytes: int = SHARD_BYTES,
) -> AddReport:
    """Add videos to a library of one stream; it is made if there is none."""
    folder = LibraryFolder(library, create=True, shard_bytes=shard_bytes)
    with folder.writing():
        folder.add_streams([describe_stream(encoder, "video", CLIP_LEN_S)], active=True)
        files = [file for path in paths for file in find_videos(path)]
        settings = AddSettings(workers=1)
        return Adder(folder, folder.streams(active=True), settings).run(files)


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_plain(path: Path, level: int, n_frames: int = 8) -> Path:
    """A grey video of four frames a second, the same brightness everywhere."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast"}
        picture = np.full((32, 32, 3), level, dtype=np.uint8)
        for number in range(n_frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 4)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


class Noting(TinyVideoEncoder):
    """Notes the brightness of each clip that it encodes in the file `NOTES`, and takes its time."""

    name: ClassVar[str] = "test.noting"

    def encode_clips(self, frames: Frames) -> Rows:
        if NOTES in os.environ:  # Not in the tests of all registered encoders.
            with Path(os.environ[NOTES]).open("a") as file:
                file.writelines(f"{round(clip.mean())}\n" for clip in frames)
            time.sleep(0.02)
        return super().encode_clips(frames)


if Noting.name not in ENCODERS:
    ENCODERS.register(Noting.name, f"{__name__}:Noting")
