"""The server as a process: uploads of any kind, jobs, a champion that moves, an end in order."""

import io
import json
import random
import shutil
import signal
import struct
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrmodel import presets
from tests.cases.models import write_model
from tests.compat import test_compat as compat
from tests.library.videos import write_videos
from tests.security.test_opening_videos import PLAYLISTS
from tests.server.process import ServerProcess, serving
from tests.shards.processes import wait_until
from tests.video.fixtures import read_number, write_video

pytestmark = pytest.mark.services

# What is above it after hostile uploads was not given back.
MOST_GROWTH_MB = 100.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of an empty library."""
    folder = tmp_path_factory.mktemp("server")
    write_model(folder / "model")
    with serving(folder, "--library", "library", "--model", "model") as server:
        yield server


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("film") / "a.mp4", 50, gop=10).read_bytes()


@pytest.fixture(scope="module")
def video(server: ServerProcess, film: bytes) -> str:
    """The id of an uploaded video of 5 s."""
    answer = server.client.post("/v1/videos", files={"file": ("Lake at dawn.mp4", film)})
    job = server.job(answer)
    assert job["state"] == "done", job
    found: str = job["result"]["video"]["id"]
    return found


def test_an_upload_is_encoded_searched_and_shown(
    server: ServerProcess, video: str, film: bytes
) -> None:
    shown = server.client.get(f"/v1/videos/{video}").json()
    assert (shown["name"], shown["duration_s"], shown["uploaded"]) == (
        "Lake at dawn.mp4",
        5.0,
        True,
    )
    body = {"queries": ["a lake"], "top": 1}
    (result,) = server.client.post(f"/v1/videos/{video}/search", json=body).json()["results"]
    assert len(result["clip_scores"]) == 2
    assert server.client.get(f"/v1/videos/{video}/media").content == film
    still = server.client.get(f"/v1/videos/{video}/thumbnail", params={"t": 2.5, "width": 160})
    assert still.headers["Content-Type"] == "image/jpeg"
    with Image.open(io.BytesIO(still.content)) as image:
        assert read_number(np.asarray(image)) == 25
    again = server.client.post("/v1/videos", files={"file": ("copy.mp4", film)})
    assert server.job(again)["result"]["video"] == shown
    assert len(server.client.get("/v1/videos").json()["videos"]) == 1


def test_hits_become_files(server: ServerProcess, video: str) -> None:
    hits = [
        {"video": video, "start_s": start_s, "end_s": start_s + 1.0, "query": "a lake"}
        for start_s in (1.0, 3.0)
    ]
    job = server.job(server.client.post("/v1/exports", json={"format": "mp4", "hits": hits}))
    assert job["state"] == "done", job
    result = server.client.get(f"/v1/jobs/{job['id']}/result")
    assert "attachment" in result.headers["Content-Disposition"]
    with zipfile.ZipFile(io.BytesIO(result.content)) as archive:
        assert len(archive.namelist()) == 2
        assert archive.read(archive.namelist()[0])[4:8] == b"ftyp"


def test_a_job_that_is_cancelled_leaves_nothing(server: ServerProcess, tmp_path: Path) -> None:
    long = write_video(tmp_path / "long.mp4", 300).read_bytes()
    before = server.client.get("/v1/videos").json()
    answer = server.client.post("/v1/videos", files={"file": ("long.mp4", long)})
    server.client.post(f"/v1/jobs/{answer.json()['job']['id']}/cancel")
    assert server.job(answer)["state"] == "cancelled"
    assert server.client.get("/v1/videos").json() == before


def film_of_hours(folder: Path) -> bytes:
    """Five seconds whose header says ten hours."""
    content = bytearray(write_video(folder / "a.mkv", 50).read_bytes())
    place = content.index(b"\x44\x89\x88") + 3
    content[place : place + 8] = struct.pack(">d", 36_000_000.0)
    return bytes(content)


def film_of_16k(folder: Path) -> bytes:
    """Pictures that say they have 16,384 x 16,384 pixels."""
    content = bytearray(
        write_video(folder / "a.avi", 5, codec="mjpeg", pix_fmt="yuvj420p").read_bytes()
    )
    place = content.find(b"\xff\xc0")
    while place >= 0:
        content[place + 5 : place + 9] = struct.pack(">HH", 16_384, 16_384)
        place = content.find(b"\xff\xc0", place + 9)
    return bytes(content)


def hostile(folder: Path, film: bytes) -> dict[str, tuple[str, bytes]]:
    """What is sent as a video -> its name and content."""
    found = {
        "empty": ("a.mp4", b""),
        "text": ("a.mp4", b"not a video\n" * 100),
        "page": ("a.mp4", b"<html><body>no</body></html>"),
        "program": ("a.mp4", b"\x7fELF" + bytes(5000)),
        "16k": ("a.avi", film_of_16k(folder)),
        "ten hours": ("a.mkv", film_of_hours(folder)),
        "header alone": ("a.mp4", film[:64]),
        "cut": ("a.mp4", film[: len(film) // 2]),
        "pointer": ("a.s3", b'{"url": "s3://a/b"}'),
    }
    for kind, (_, text) in PLAYLISTS.items():
        found[kind] = ("a.mp4", text.replace("{}", "file:///etc/passwd").encode())
    return found


def test_hostile_uploads_are_refused_and_the_server_stays(
    server: ServerProcess, video: str, film: bytes, tmp_path: Path
) -> None:
    before = server.memory_mb()
    statuses, messages = {}, {}
    for kind, (name, content) in hostile(tmp_path, film).items():
        answer = server.client.post("/v1/videos", files={"file": (name, content)})
        statuses[kind] = answer.status_code
        messages[kind] = answer.json()["error"]["message"]
    assert set(statuses.values()) <= {413, 415, 422}, statuses
    assert f"{7680 * 4320} pixels" in messages["16k"]
    assert "header says 36000 s" in messages["ten hours"]
    random_bytes = random.Random(0)
    for number in range(8):
        content = bytearray(film)
        # The index of this file is at its end.
        for _ in range(40):
            content[-random_bytes.randrange(1, 1500)] = random_bytes.randrange(256)
        answer = server.client.post("/v1/videos", files={"file": (f"{number}.mp4", bytes(content))})
        if answer.status_code == 202:  # What is left can be read.
            job = server.job(answer)
            assert job["state"] in ("done", "failed"), job
            if job["state"] == "done":
                server.client.delete(f"/v1/videos/{job['result']['video']['id']}")
        else:
            assert answer.status_code in (413, 415, 422), answer.text
    assert [one["id"] for one in server.client.get("/v1/videos").json()["videos"]] == [video]
    wait_until(lambda: server.memory_mb() < before + MOST_GROWTH_MB, "memory that returns")
    assert len(list((server.folder / "library/uploads").iterdir())) == 1
    assert "Traceback" not in server.log()


def test_the_champion_moves_and_no_request_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MRMODEL_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    project = tmp_path / "project"
    shutil.copytree(compat.HERE / "project", project)
    (project / "params.yaml").write_text(
        presets.overlay(presets.render("miniature"), compat.PROMOTION)
    )
    monkeypatch.chdir(project)
    compat.unpack_database()
    folders = compat.unpack_versions()
    write_videos(project / "videos", {"a.mp4": 40})
    compat.command("index", "add", "videos", "--model", "models/finetuned/moment_detr")
    with serving(project, "--champion", compat.REGISTERED, "--device", "cpu") as server:
        (video,) = server.client.get("/v1/videos").json()["videos"]
        statuses, stop = Counter[int](), threading.Event()

        def ask() -> None:
            while not stop.is_set():
                body = {"queries": ["a red car"], "top": 1}
                path = f"/v1/videos/{video['id']}/search"
                statuses[server.client.post(path, json=body).status_code] += 1

        def model() -> str:
            found: str = server.client.get("/v1/status").json()["model"]
            return found

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        assert model() == "moments version 1"
        compat.command("registry", "rollback", "--to", "2", "--reason", "test")
        wait_until(lambda: model() == "moments version 2", "version 2")
        # A champion that this code cannot read: the one before goes on.
        for folder in folders:
            config = folder / "artifacts/model/config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 99}))
        compat.command("registry", "rollback", "--to", "1", "--reason", "test")
        wait_until(lambda: "moments version 1 is not served" in server.log(), "a refusal")
        assert model() == "moments version 2"
        stop.set()
        for thread in asking:
            thread.join()
        assert set(statuses) == {200}


def test_it_ends_in_order(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    with serving(tmp_path, "--model", "model") as server:
        assert server.stop() == -signal.SIGTERM
        assert "Application shutdown complete" in server.log()
        assert "Traceback" not in server.log()
