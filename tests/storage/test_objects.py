"""Objects that others have put into a bucket: found, and read in parts as the version they were."""

import http.server
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import boto3
import pytest

from mrmodel.errors import ObjectChanged, ObjectMissing, StorageError
from mrmodel.storage import ENDPOINT_VARIABLE, Listed, list_objects, open_object
from tests.services import S3Service

CONTENT = bytes(range(256)) * 64
Put = Callable[..., Listed]


def client_of(server: S3Service) -> Any:
    return boto3.session.Session().client("s3", endpoint_url=server.url)


@pytest.fixture
def folder() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def put(s3_env: S3Service, folder: str) -> Put:
    """Puts an object as a stranger would: under any key, without our metadata."""
    client = client_of(s3_env)

    def write(key: str, content: bytes = CONTENT) -> Listed:
        answer = client.put_object(Bucket="mrmodel", Key=f"{folder}/{key}", Body=content)
        etag = answer["ETag"].strip('"')
        return Listed(f"s3://mrmodel/{folder}/{key}", etag, len(content))

    return write


@pytest.mark.parametrize("key", ["a.mp4", ".b/c d", "é ü+%20?#&.mp4", "a\\b@c:d"])
def test_parts_of_an_object(put: Put, key: str) -> None:
    found = open_object(put(key))
    assert found.read(0, 1) == CONTENT[:1]
    assert found.read(300, 1000) == CONTENT[300:1300]
    assert found.read(len(CONTENT) - 5, 5) == CONTENT[-5:]
    assert found.read(0, len(CONTENT)) == CONTENT


def test_a_version_is_read_or_nothing(put: Put, s3_env: S3Service, folder: str) -> None:
    first = put("a")
    found = open_object(first)
    found.read(0, 10)
    put("a", CONTENT[::-1])
    with pytest.raises(ObjectChanged, match=rf"key '{folder}/a': its ETag is not {first.etag}"):
        found.read(10, 10)
    put("a")
    assert found.read(10, 10) == CONTENT[10:20]
    client_of(s3_env).delete_object(Bucket="mrmodel", Key=f"{folder}/a")
    with pytest.raises(ObjectMissing, match=r"s3://mrmodel: key .*there is no such object"):
        found.read(20, 10)


@pytest.mark.parametrize("more", [-1, 1, 1 << 20])
def test_another_size_is_another_version(put: Put, more: int) -> None:
    version = put("a")
    with pytest.raises(ObjectChanged):
        open_object(replace(version, n_bytes=len(CONTENT) + more)).read(len(CONTENT) + more - 1, 1)


def test_a_missing_bucket(s3_env: S3Service) -> None:
    with pytest.raises(ObjectMissing, match="s3://no-such-bucket: key 'a'"):
        open_object(Listed("s3://no-such-bucket/a", "0" * 32, 10)).read(0, 10)
    with pytest.raises(StorageError, match="no such bucket"):
        list_objects("s3://no-such-bucket/a")


def test_everything_below_an_address_is_listed(put: Put, folder: str) -> None:
    keys = [".hidden/x", "a/b.mp4", "a/é ?.mp4", "a@b", "z"]
    versions = [put(key, key.encode()) for key in keys]
    put("folder/", b"")
    assert list_objects(f"s3://mrmodel/{folder}") == versions
    assert list_objects(f"s3://mrmodel/{folder}/a/") == versions[1:3]
    assert list_objects(f"s3://mrmodel/{folder}/none") == []


@pytest.mark.parametrize(
    "url", ["", "folder/a", "s3://bucket", "s3://bucket/", "s3:///a", "s3://planted:planted@b/a"]
)
def test_addresses_that_name_no_object(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_object(Listed(url, "0", 1))
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["folder", "gs://bucket/a", "s3://planted:planted@bucket/a", "planted:planted@bucket/a"]
)
def test_addresses_that_cannot_be_listed(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        list_objects(url)
    assert "planted" not in str(caught.value)


class Simple(http.server.BaseHTTPRequestHandler):
    """A server that knows neither conditions nor parts: it gives the whole object."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("ETag", '"version"')
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def simple_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Simple) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(ENDPOINT_VARIABLE, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield
        server.shutdown()


def test_a_server_that_ignores_what_it_is_asked(simple_server: None) -> None:
    with pytest.raises(ObjectChanged, match="its ETag is version, not another"):
        open_object(Listed("s3://bucket/a", "another", len(CONTENT))).read(0, 10)
    with pytest.raises(StorageError, match="gave 'all' where bytes 0-9 were asked for"):
        open_object(Listed("s3://bucket/a", "version", len(CONTENT))).read(0, 10)


def test_local_videos_need_no_client() -> None:
    code = (
        "import sys, mrmodel.video.frames, mrmodel.data.check, mrmodel.data.ingest.s3_links; "
        "print([name for name in ('boto3', 'botocore') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
