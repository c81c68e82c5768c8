"""Videos in a bucket, linked into a folder, and what the corpus makes of such a folder."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner

from mrmodel.cli.main import cli
from mrmodel.data.check import check_file
from mrmodel.data.ingest.folder import import_folder
from mrmodel.data.ingest.s3_links import LinkReport, link_videos
from mrmodel.errors import DataError, StorageError, VideoError
from mrmodel.progress import NullReporter
from mrmodel.storage import ENDPOINT_VARIABLE, Listed
from mrmodel.video.remote import read_video_pointer, write_pointer
from tests.services import S3Service
from tests.synthetic.conftest import bytes_of

Make = Callable[[], Path]


class Bucket:
    """A place of one's own in the bucket."""

    def __init__(self, server: S3Service) -> None:
        self._client = boto3.session.Session().client("s3", endpoint_url=server.url)
        self._prefix = secrets.token_hex(8)
        self.url = f"s3://mrmodel/{self._prefix}"

    def put(self, *names: str, content: bytes = b"") -> None:
        for name in names:
            key = f"{self._prefix}/{name}"
            self._client.put_object(Bucket="mrmodel", Key=key, Body=content or name.encode())

    def remove(self, name: str) -> None:
        self._client.delete_object(Bucket="mrmodel", Key=f"{self._prefix}/{name}")


@pytest.fixture
def bucket(s3_env: S3Service) -> Bucket:
    return Bucket(s3_env)


def times_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_each_video_gets_a_pointer(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("lake.mp4", "2024/Party.MOV", "2024/é a.b.webm", "notes.txt", "._lake.mp4", "mp4")
    folder = tmp_path / "own" / "videos"
    assert link_videos(bucket.url, folder) == LinkReport(new=3, ignored=3)
    assert sorted(path.name for path in folder.iterdir()) == ["Party.s3", "lake.s3", "é a.b.s3"]
    found = read_video_pointer(folder / "lake.s3")
    assert (found.url, found.n_bytes) == (f"{bucket.url}/lake.mp4", len("lake.mp4"))


def test_only_what_changed_is_written_again(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("a.mp4", "b.mp4", "gone.mp4")
    link_videos(bucket.url, tmp_path)
    before = times_of(tmp_path)
    bucket.put("b.mp4", content=b"another")
    bucket.put("c.mp4")
    bucket.remove("gone.mp4")
    (tmp_path / "local.mp4").write_bytes(b"stays")
    (tmp_path / "damaged.s3").write_bytes(b"{")
    bucket.put("damaged.mkv")
    assert link_videos(bucket.url, tmp_path) == LinkReport(new=1, updated=2, unchanged=1)
    after = times_of(tmp_path)
    assert {name for name in before if after[name] == before[name]} == {"a.s3", "gone.s3"}
    assert set(after) == {"a.s3", "b.s3", "c.s3", "gone.s3", "damaged.s3", "local.mp4"}
    assert read_video_pointer(tmp_path / "b.s3").n_bytes == len(b"another")
    assert link_videos(bucket.url, tmp_path) == LinkReport(unchanged=4)


def test_names_that_clash_are_said_and_the_others_linked(bucket: Bucket, tmp_path: Path) -> None:
    long = "x" * 201
    bucket.put("a/one.mp4", "b/one.mkv", "good.mp4", "local.mp4", f"{long}.mp4", "moved.mp4")
    (tmp_path / "local.webm").write_bytes(b"")
    other = Listed("s3://other/moved.mp4", "0", 1)
    write_pointer(tmp_path / "moved.s3", other)
    result = CliRunner().invoke(cli, ["data", "link", bucket.url, str(tmp_path)])
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert lines[-1] == "1 new, 0 updated, 0 unchanged; 0 other objects ignored, 4 errors"
    clash = f"error: video 'one' would be several objects ({bucket.url}/a/one.mp4, "
    assert any(line.startswith(f"{clash}{bucket.url}/b/one.mkv)") for line in lines)
    assert any("local.webm of that name; keep one of them" in line for line in lines)
    assert any("moved.s3 points to s3://other/moved.mp4" in line for line in lines)
    assert any(f"{long}.mp4: a video's name must be" in line for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {"good.s3", "local.webm", "moved.s3"}
    assert read_video_pointer(tmp_path / "moved.s3") == other


def test_where_there_is_nothing_to_link(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("notes.txt")
    with pytest.raises(DataError, match=rf"{bucket.url}: holds 1 objects, but no video"):
        link_videos(bucket.url, tmp_path / "new")
    with pytest.raises(StorageError, match="no such bucket"):
        link_videos("s3://no-such-bucket/a", tmp_path / "new")
    with pytest.raises(StorageError, match="s3://bucket/folder"):
        link_videos(str(tmp_path), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def linked(bucket: Bucket, own_folder: Make) -> Path:
    """A person's folder, two of whose four videos lie in the bucket."""
    folder = own_folder()
    for stem in ("train-0000", "val-0000"):
        path = folder / "videos" / f"{stem}.mp4"
        bucket.put(f"films/{path.name}", content=path.read_bytes())
        path.unlink()
    arguments = ["data", "link", f"{bucket.url}/films", str(folder / "videos")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    assert result.output.startswith("2 new, 0 updated, 0 unchanged; ")
    return folder


def details_of(folder: Path, out: Path) -> dict[str, Any]:
    import_folder(folder, 2.0, out, NullReporter())
    details: dict[str, Any] = json.loads((out / "corpus.json").read_text())
    return details


def test_a_corpus_of_linked_videos(linked: Path, small_corpus: Path, tmp_path: Path) -> None:
    assert check_file(linked / "train.jsonl", linked / "videos").errors == []
    details = details_of(linked, tmp_path / "out")
    assert details["rejected_rows"] == details["unused_videos"] == []
    expected, found = bytes_of(small_corpus), bytes_of(tmp_path / "out")
    # The size of the objects counts, not that of their pointers.
    assert details["video_bytes"] == json.loads(expected["corpus.json"])["video_bytes"]
    for stem in ("train-0000", "val-0000"):
        expected[f"videos/{stem}.s3"] = (linked / "videos" / f"{stem}.s3").read_bytes()
        del expected[f"videos/{stem}.mp4"]
    del expected["corpus.json"], found["corpus.json"]
    assert found == expected


def test_what_is_wrong_with_an_object_costs_its_rows(
    linked: Path, bucket: Bucket, own_folder: Make, tmp_path: Path
) -> None:
    train, lines = linked / "train.jsonl", (linked / "train.jsonl").read_text().splitlines()
    for number, vid in enumerate(("changed", "gone", "damaged", "twice")):
        row = json.loads(lines[0]) | {"qid": 900 + number, "vid": vid}
        with train.open("a") as file:
            file.write(json.dumps(row) + "\n")
    bucket.put("films/changed.mp4", "films/gone.mp4", "films/twice.mp4")
    link_videos(f"{bucket.url}/films", linked / "videos")
    bucket.put("films/changed.mp4", content=b"another")
    bucket.remove("films/gone.mp4")
    (linked / "videos" / "damaged.s3").write_text("{}")
    (linked / "videos" / "twice.mkv").write_bytes(b"")
    details = details_of(linked, tmp_path / "out")
    rules = {row["id"]: row["rule"] for row in details["rejected_rows"]}
    assert rules == {
        900: "its video changed.s3 cannot be read: changed",
        901: "its video gone.s3 cannot be read: not_found",
        902: "its video damaged.s3 cannot be read: invalid_pointer",
        903: "several files of one name (twice.mkv, twice.s3); keep one of them",
    }


def test_a_server_that_refuses_makes_no_smaller_corpus(
    linked: Path, s3_env: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    # A client is made once for each address, and this one names the same server.
    monkeypatch.setenv(ENDPOINT_VARIABLE, s3_env.url.replace("127.0.0.1", "localhost"))
    with pytest.raises(VideoError, match=r"train-0000\.s3: unreadable: .*secret key is wrong"):
        details_of(linked, tmp_path / "out")
