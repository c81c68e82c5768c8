"""A library through the commands that a person types."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mrmodel.cli.main import cli
from mrmodel.library.folder import LibraryFolder
from mrmodel.video.remote import write_pointer
from tests.cases.models import write_model
from tests.library.subtitles import add_track
from tests.library.videos import write_videos
from tests.services import S3Service
from tests.video.fixtures import write_audio

SRT = "1\n00:00:01,000 --> 00:00:02,000\nA rocket is launched.\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`videos` and the model folder `model`; only to be read."""
    base = tmp_path_factory.mktemp("made")
    (base / "videos/sub").mkdir(parents=True)
    lengths = {"good.mp4": 40, "said.mp4": 60, "sub/other.mp4": 80, "later.mp4": 100}
    write_videos(base / "videos", lengths)
    (base / "videos/said.srt").write_text(SRT)
    (base / "videos/later.mp4").rename(base / "later.mp4")
    write_model(base / "model")
    return base


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a copy of `videos`; the model is that of `made`."""
    shutil.copytree(made / "videos", tmp_path / "videos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["index", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def add(made: Path, *paths: str, code: int = 0) -> str:
    return run("add", *paths, "--model", str(made / "model"), "--workers", "1", code=code)


def listed() -> dict[str, str]:
    rows = [json.loads(line) for line in run("list", "--json").splitlines()]
    return {Path(row["path"]).name: row["status"] for row in rows}


def test_a_folder_as_people_have_it(made: Path, place: Path) -> None:
    videos = place / "videos"
    (videos / "damaged.mp4").write_bytes((videos / "good.mp4").read_bytes()[:900])
    write_audio(videos / "sound.m4v")
    (videos / "notes.txt").write_text("no video")
    shutil.copy(videos / "good.mp4", videos / "sub/good copy.mp4")
    output = add(made, "videos", code=2)
    assert f"problem: {videos}/damaged.mp4: invalid_data" in output
    assert f"problem: {videos}/sound.m4v: no_video_stream" in output
    assert f"same content: {videos}/sub/good copy.mp4 = {videos}/good.mp4" in output
    assert "3 encoded, 1 copies, 2 problems" in output
    assert listed() == {
        "damaged.mp4": "failed",
        "good.mp4": "ok",
        "said.mp4": "ok",
        "sound.m4v": "failed",
        "good copy.mp4": "ok",
        "other.mp4": "ok",
    }
    assert "0:06.0  ok, 1 sentences  " in run("list")

    (videos / "good.mp4").rename(videos / "renamed.mp4")
    (videos / "damaged.mp4").unlink()
    (videos / "sub/other.mp4").rename(place / "away.mp4")
    shutil.copy(made / "later.mp4", videos)
    output = run("refresh", "--workers", "1", code=2)
    assert f"moved: {videos}/good.mp4 -> {videos}/renamed.mp4" in output
    assert f"gone: {videos}/sub/other.mp4" in output
    assert f"gone: {videos}/damaged.mp4" in output
    assert "1 encoded, 1 moved, 2 unchanged, 2 gone, 1 problems" in output
    assert listed()["other.mp4"] == "missing"
    run("remove", "videos/damaged.mp4", "videos/sound.m4v", "videos/sub/other.mp4")
    (videos / "sound.m4v").unlink()
    assert "4 unchanged" in run("refresh")
    assert set(listed().values()) == {"ok"}


def test_search_shows_moments_and_what_is_said(made: Path, place: Path) -> None:
    add(made, "videos")
    output = run("search", "the rocket launch", "--model", str(made / "model"), "--top", "2")
    lines = output.splitlines()
    assert lines[0] == "the rocket launch"
    assert lines[1] == f"  1. {place}/videos/said.mp4"
    assert "       said at 0:01.0: A rocket is launched." in lines
    assert sum("score" in line for line in lines) >= 2
    output = run("search", "the rocket launch", "--model", str(made / "model"), "--json")
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert rows[0]["vid"] == "said"
    assert rows[0]["duration"] == pytest.approx(6.0)
    assert rows[0]["pred_relevant_windows"]
    assert rows[0]["evidence"]["text"] == "A rocket is launched."
    assert -1.0 <= rows[0]["similarity"] <= 1.0


def test_mistakes_are_one_line(made: Path, place: Path) -> None:
    from mrmodel.errors import LibraryError

    for command in (["list"], ["search", "a dog"], ["refresh"], ["remove", "videos"]):
        with pytest.raises(LibraryError, match="library: no library there; `mrmodel index add`"):
            run(*command)
    output = add(made, "videos/good.mp4", "videos/nothing.mp4", code=2)
    assert f"problem: {place}/videos/nothing.mp4: no such file or folder" in output
    assert list(listed()) == ["good.mp4"]
    with pytest.raises(
        LibraryError, match=r"said\.mp4: is not in the library; `mrmodel index list`"
    ):
        run("remove", "videos/said.mp4")
    with pytest.raises(LibraryError, match=r"the model reads embedded\.video, and the library"):
        run("search", "a dog", "--model", "zero-shot")
    folder = LibraryFolder(place / "library")
    with folder.writing():
        for command in (["add", "videos"], ["refresh"], ["remove", "videos"]):
            with pytest.raises(LibraryError, match="library: another process is changing this"):
                run(*command)


def test_videos_in_s3_and_subtitle_tracks(
    made: Path, place: Path, s3_env: S3Service, caplog: pytest.LogCaptureFixture
) -> None:
    """An object is read like a file, with its subtitle track; one that has changed is a problem."""
    import boto3

    from mrmodel.storage import Listed

    caplog.set_level(logging.ERROR)
    client = boto3.session.Session().client("s3", endpoint_url=s3_env.url)
    track = add_track(place / "videos/said.mp4", place / "videos/said.srt", place / "track.mkv")
    content = track.read_bytes()
    folder = place / "linked"
    for name in ("lake", "sea"):
        key = f"{os.getpid()}/{name}.mkv"
        etag = client.put_object(Bucket="mrmodel", Key=key, Body=content)["ETag"].strip('"')
        write_pointer(folder / f"{name}.s3", Listed(f"s3://mrmodel/{key}", etag, len(content)))
    client.put_object(Bucket="mrmodel", Key=f"{os.getpid()}/sea.mkv", Body=content + b"more")
    output = add(made, "linked", code=2)
    assert f"problem: {folder}/sea.s3: changed" in output
    assert "1 encoded, 1 problems" in output
    assert listed() == {"lake.s3": "ok", "sea.s3": "failed"}
    output = run("search", "the rocket launch", "--model", str(made / "model"))
    assert "said at 0:01.0: A rocket is launched." in output
    (folder / "lake.s3").rename(folder / "moved.s3")
    assert "1 moved" in add(made, "linked", code=2)
