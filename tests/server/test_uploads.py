"""Forms of uploads that are refused before anything is decoded, and files that jobs make."""

import csv
import json
import zipfile
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mrmodel.server.child import export
from tests.server.conftest import error_of

FORM = "multipart/form-data; boundary=X"
NAMES = ["../a.mp4", "/etc/passwd.mp4", "a\\b.mp4", "a\x00.mp4", "", ".mp4", f"{'a' * 300}.mp4"]


def left_over(made: Path) -> list[Path]:
    return list((made / "library/uploads").iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_no_name(client: TestClient, made: Path, name: str) -> None:
    body = (
        f'--X\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\nx\r\n--X--'
    )
    answer = client.post("/v1/videos", content=body, headers={"Content-Type": FORM})
    assert error_of(answer, 400) in ("bad_name", "bad_form")
    assert left_over(made) == []


@pytest.mark.parametrize("name", ["a.m3u8", "a.s3", "a.txt", "a", "a.mp4.exe"])
def test_only_names_of_videos(client: TestClient, name: str) -> None:
    answer = client.post("/v1/videos", files={"file": (name, b"x")})
    assert error_of(answer, 415) == "unknown_container"


def test_a_form_holds_one_file(client: TestClient, made: Path) -> None:
    part = ("file", ("a.mp4", b"x"))
    many = client.post("/v1/videos", files=[part] * 10_000)
    assert error_of(many, 400) == "too_many_parts"
    other = client.post("/v1/videos", files={"other": ("a.mp4", b"x")})
    assert error_of(other, 400) == "bad_form"
    text = client.post("/v1/videos", files={"file": (None, "x")})
    assert error_of(text, 400) == "bad_form"
    assert error_of(client.post("/v1/videos", content=b"x"), 415) == "no_form"
    assert error_of(client.post("/v1/videos", json={"file": "a"}), 415) == "no_form"
    long, many_headers = b"--X\r\n" + b"A" * 100_000, b"--X\r\n" + b"A: b\r\n" * 100
    for content in (b"", b"nothing", b"--X\r\n", long, many_headers):
        answer = client.post("/v1/videos", content=content, headers={"Content-Type": FORM})
        assert error_of(answer, 400) == "bad_form"
    headers = {"Content-Type": f"multipart/form-data; boundary={'X' * 300}"}
    assert error_of(client.post("/v1/videos", content=b"x", headers=headers), 400) == "bad_form"
    assert left_over(made) == []


def test_exports_name_videos_and_no_paths(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    videos = {"0": str(made / "videos/a.mp4"), "1": str(made / "videos/c.mp4")}
    hits = [
        {"video": video, "query": "a dog", "start_s": 1.0, "end_s": 3.0, "score": 0.5}
        for video in videos
    ]
    for kind in ("csv", "json", "otio", "vtt", "label-studio"):
        folder = tmp_path / kind
        folder.mkdir()
        made_of = export(videos, hits, str(folder), kind, exact=False)
        monkeypatch.chdir(tmp_path)
        file = folder / made_of["file"]
        assert made_of["notes"] == []
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                names = sorted(archive.namelist())
                text = "".join(archive.read(name).decode() for name in names)
            expected = {
                "vtt": ["a.vtt", "c.vtt"],
                "label-studio": ["label_studio.json", "label_studio.xml"],
            }
            assert names == expected[kind]
        else:
            text = file.read_text()
        assert str(tmp_path) not in text
        assert str(made) not in text
        if kind == "csv":
            assert [row["path"] for row in csv.DictReader(text.splitlines())] == ["a.mp4", "c.mp4"]
        if kind == "json":
            assert [row["path"] for row in json.loads(text)["videos"]] == ["a.mp4", "c.mp4"]


def test_an_export_is_refused_at_once(client: TestClient, ids: dict[str, str]) -> None:
    hit = {"video": ids["a.mp4"], "start_s": 1.0, "end_s": 2.0}
    for wrong in ({"start_s": 2.0}, {"end_s": 1e9}, {"video": "../a"}, {"query": 5}):
        answer = client.post("/v1/exports", json={"format": "csv", "hits": [hit | wrong]})
        assert error_of(answer, 422) == "invalid"
    unknown = client.post("/v1/exports", json={"format": "csv", "hits": [hit | {"video": "0"}]})
    assert error_of(unknown, 404) == "no_such_video"
    assert error_of(client.post("/v1/exports", json={"format": "x", "hits": [hit]}), 422)
