"""Finding 9: a served model reads what its operator names, and tells nothing about the rest."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mrmodel.errors import ConfigError, DataError, FeatureError, MrModelError, VideoError
from mrmodel.storage import FolderStore
from mrmodel.tracking import inputs
from mrmodel.tracking.inputs import EXAMPLE, PLACES_VARIABLE, ServedPlaces, Source, VideoRows
from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling
from tests.video.fixtures import write_video


class Stream:
    name = "tiny.video"


class Model:
    """Decodes what it is given, as a model's encoders do; of which files there was a picture."""

    class config:  # noqa: N801
        video_streams = (Stream,)

    def __init__(self) -> None:
        self.read: list[str] = []

    def encode(self, path: Path) -> Any:
        list(FrameSource(path).clips(1.0, FrameSampling(1, None)))
        self.read.append(path.name)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders and buckets, of which `films` and ``s3://lake/films`` are named."""
    for place in ("films/deep", "films-2", "other", "s3/lake/films", "s3/lake/more", "s3/sea"):
        (tmp_path / place).mkdir(parents=True)
    video = write_video(tmp_path / "a.mp4", 20).read_bytes()
    places = ("", "films", "films/deep", "films-2", "other", "s3/lake/films", "s3/lake/more")
    for place in (*places, "s3/sea"):
        (tmp_path / place / "a.mp4").write_bytes(video)
    monkeypatch.setenv(PLACES_VARIABLE, f"{tmp_path}/films, s3://lake/films")
    monkeypatch.setattr(
        inputs,
        "open_store",
        lambda url: FolderStore(tmp_path / "s3" / url.removeprefix("s3://")),
    )
    return tmp_path


@pytest.fixture
def rows(machine: Path) -> VideoRows:
    return VideoRows(Model(), machine / "a.mp4")  # type: ignore[arg-type]


def read_by(rows: VideoRows) -> list[str]:
    model: Any = rows._predictor
    return list(model.read)


def answer(rows: VideoRows, source: Source) -> str:
    """All that a client of MLflow sees of a failure, but for the name that it sent."""
    with pytest.raises(MrModelError) as caught:
        rows.load(source)
    assert "\n" not in str(caught.value)
    said = "".join(traceback.format_exception(caught.value))
    assert "secret" not in said
    return re.sub(r"(?<=^mrmodel\.errors\.DataError: )['\"].*['\"] is", "NAME is", said, flags=re.M)


def test_named_places_are_read(machine: Path, rows: VideoRows) -> None:
    (machine / "films/link.mp4").symlink_to("deep/a.mp4")
    films = machine / "films"
    for name in (
        films / "a.mp4",
        films / "deep/a.mp4",
        films / "link.mp4",
        "s3://lake/films/a.mp4",
    ):
        rows.load(Source(video=str(name)))
    rows.load(Source(video=EXAMPLE))
    assert read_by(rows) == ["a.mp4", "a.mp4", "link.mp4", "a.mp4", "a.mp4"]


# Here features may be, and no video is.
FOLDERS = ("{}/films", "{}/films/deep")
REFUSED = [
    *FOLDERS,
    "{}/other/a.mp4",
    "{}/other/none.mp4",
    "{}/films/none.mp4",
    "{}/films-2/a.mp4",
    "{}/films/../other/a.mp4",
    "{}/films/deep/../a.mp4",
    "{}/films/out.mp4",
    "{}/films/loop.mp4",
    "{}/films/pipe.mp4",
    "{}/films/a.mp4/a",
    "{}/films/a\0.mp4",
    "{}/films/a.mp4\0.jpg",
    "{}/films/" + 300 * "n",
    "{}/films/out.s3",
    "{}/a.mp4",
    "films/a.mp4",
    "a.mp4",
    "/etc/passwd",
    "/etc/none",
    "/dev/zero",
    "/proc/self/environ",
    "/root/a.mp4",
    "~/a.mp4",
    ".",
    " ",
    "s3://lake/films/none.mp4",
    "s3://lake/more/a.mp4",
    "s3://lake/films/../more/a.mp4",
    "s3://lake/films/./a.mp4",
    "s3://lake/films//a.mp4",
    "s3://lake/films/..%2fmore/a.mp4",
    "s3://lake/films/out.s3",
    "s3://lake/filmsx/a.mp4",
    "s3://lake/films",
    "s3://lake/",
    "s3://lake",
    "s3://",
    "s3://sea/a.mp4",
    "s3://nowhere/a.mp4",
    "s3://user:secret@lake/films/a.mp4",
    "S3://lake/films/a.mp4",
    "s3:/lake/films/a.mp4",
    "s3a://lake/films/a.mp4",
    "http://127.0.0.1:{port}/x.mp4?token=1",
    "tcp://127.0.0.1:{port}",
    "tcp:/127.0.0.1:{port}",
    "rtsp:/127.0.0.1:{port}",
    "rtsp://127.0.0.1:{port}/a",
    "udp:/127.0.0.1:{port}",
    "udp://127.0.0.1:{port}",
    "file:{}/films/a.mp4",
    "file://{}/films/a.mp4",
    "concat:{}/films/a.mp4|{}/other/a.mp4",
    "subfile,,start,0,end,0,,:{}/films/a.mp4",
    "cache:{}/films/a.mp4",
    "async:{}/films/a.mp4",
    "crypto:{}/films/a.mp4",
    "data:video/mp4;base64,AAAA",
    "pipe:0",
    "fd:0",
    "unix:{}/socket",
    "lavfi:testsrc",
]


@pytest.fixture
def listener() -> Iterator[tuple[int, list[object]]]:
    """A port, and who connected to it."""
    came: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                came.append(connection)
                connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], came
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_what_is_not_there_and_what_is_not_allowed_give_one_answer(
    machine: Path, rows: VideoRows, listener: tuple[int, list[object]]
) -> None:
    """Finding 9: nobody can tell whether a file exists, a port is open, a bucket is somebody's."""
    films, (port, came) = machine / "films", listener
    (films / "out.mp4").symlink_to(machine / "other/a.mp4")
    (films / "loop.mp4").symlink_to(films / "loop.mp4")
    os.mkfifo(films / "pipe.mp4")
    pointer = '{"url": "s3://sea/a.mp4", "etag": "0", "bytes": 5}'
    for folder in (films, machine / "s3/lake/films"):
        (folder / "out.s3").write_text(pointer)
    started = time.monotonic()
    answers = {
        answer(rows, source)
        for text in REFUSED
        for name in [text.replace("{}", str(machine)).replace("{port}", str(port))]
        for source in (Source(video=name), Source(features=name, vid="a"))
        if not (source.features and text in FOLDERS)
    }
    assert time.monotonic() - started < 5
    assert came == []
    assert read_by(rows) == []
    (one,) = answers
    rule = f"NAME is not there, or in no place that {PLACES_VARIABLE} of the server names"
    assert one.splitlines()[-1] == f"mrmodel.errors.DataError: {rule}"


def test_features_in_other_places_are_refused(machine: Path, rows: VideoRows) -> None:
    """Finding 9: a folder outside, and one that does not exist, are the same."""
    said = {
        answer(rows, Source(features=name, vid="a"))
        for name in (
            *(str(machine / place) for place in ("other", "films/none", "films-2")),
            *("s3://lake/more", "s3://lake/films/none", "s3://sea", "s3://lake"),
        )
    }
    assert len(said) == 1
    with pytest.raises(FeatureError, match="not a feature store"):
        rows.load(Source(features=str(machine / "films"), vid="a"))


def test_a_playlist_in_a_named_place_opens_nothing_else(machine: Path, rows: VideoRows) -> None:
    """Findings 3 and 9: as a file and as an object."""
    text = "ffconcat version 1.0\nfile a.mp4\n"
    for name in ("films/b.mp4", "s3/lake/films/b.mp4"):
        (machine / name).write_text(text)
    for video in (f"{machine}/films/b.mp4", "s3://lake/films/b.mp4"):
        with pytest.raises(VideoError, match="unknown_container"):
            rows.load(Source(video=video))


def test_without_the_variable_only_the_example_is_read(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (None, "", " , "):
        if value is None:
            monkeypatch.delenv(PLACES_VARIABLE)
        else:
            monkeypatch.setenv(PLACES_VARIABLE, value)
        rows = VideoRows(Model(), machine / "a.mp4")  # type: ignore[arg-type]
        rows.load(Source(video=EXAMPLE))
        for video in (f"{machine}/films/a.mp4", "s3://lake/films/a.mp4"):
            with pytest.raises(DataError, match="is not there, or in no place"):
                rows.load(Source(video=video))


@pytest.mark.parametrize(
    "value", ["films", "/a,films", "../films", "/a/../b", "http://a", "s3://", "s3://b/../c", "~/a"]
)
def test_places_are_absolute_folders_and_s3_addresses(value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{PLACES_VARIABLE} = '.*': expected absolute folders"):
        ServedPlaces.from_environment({PLACES_VARIABLE: value})


def test_a_place_that_is_a_link_is_the_folder_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/a.mp4").touch()
    (tmp_path / "here").symlink_to("there")
    places = ServedPlaces.from_environment({PLACES_VARIABLE: str(tmp_path / "here")})
    assert places.path(str(tmp_path / "here/a.mp4")) == tmp_path / "here/a.mp4"
    assert places.path(str(tmp_path / "there/a.mp4")) is None
