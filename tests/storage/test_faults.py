"""An S3 server that stops, loses answers, holds damaged bytes or refuses."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from mrmodel.errors import ConflictError, MrModelError, StorageError
from mrmodel.storage import Object, Store, open_store
from tests.services import Service


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_an_outage_is_ridden_out(own_s3: Service, end: str, tmp_path: Path) -> None:
    store = open_store("s3://mrmodel/outage")
    store.put("known", b"known")
    large, seen = tmp_path / "large", tmp_path / "seen"
    large.write_bytes(secrets.token_bytes(9 << 20))
    over = threading.Event()
    wrong: list[str] = []

    def repeat(step: Callable[[int], bool]) -> None:
        number = 0
        while not over.is_set():
            try:
                if not step(number):
                    wrong.append(f"{step.__name__} {number}")
            except MrModelError as error:
                wrong.append(str(error))
            number += 1

    def write(number: int) -> bool:
        return bool(store.put(f"written/{number:05}", b"%d" % number, if_absent=True))

    def read(_: int) -> bool:
        return store.get("known") is not None and store.exists("known")

    def find(_: int) -> bool:
        return store.keys("kno") == ["known"]

    def move(_: int) -> bool:
        store.upload("large", large)
        store.download("large", seen)
        return seen.read_bytes() == large.read_bytes()

    threads = [threading.Thread(target=repeat, args=(step,)) for step in (write, read, find, move)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    getattr(own_s3, end)()
    time.sleep(4)
    own_s3.start()
    time.sleep(2)
    over.set()
    for thread in threads:
        thread.join(90)
    assert wrong == []
    written = store.keys("written/")
    assert len(written) > 10
    # None was skipped, none lost: neither what was written before the outage nor during it.
    assert written == [f"written/{number:05}" for number in range(len(written))]
    last = store.get(written[-1])
    assert last is not None
    assert last.content == b"%d" % (len(written) - 1)


@pytest.mark.services
def test_an_outage_without_end_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.socket() as bound:  # Bound, but nobody listens.
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        store = open_store("s3://mrmodel/x", endpoint=address, patience_s=8)
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"s3://mrmodel/x: key 'a': get: .*reached"):
            store.get("a")
    assert 8 <= time.monotonic() - started < 25
    assert "trying for" in caplog.text


class LosesAnswers(threading.Thread):
    """A way to a server on which the answers to the first writes get lost."""

    def __init__(self, port: int, losses: int) -> None:
        super().__init__(daemon=True)
        self._port, self.left = port, losses
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self._port)) as server:
                self._carry(client, server)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        """One connection: requests of a few bytes, one after the other."""
        while request := client.recv(1 << 16):
            server.sendall(request)
            if request.startswith(b"PUT") and b"100-continue" in request:
                client.sendall(server.recv(1 << 16))
                body = client.recv(1 << 16)
                server.sendall(body)
            answer = server.recv(1 << 16)
            if request.startswith(b"PUT") and self.left:
                self.left -= 1
                return
            client.sendall(answer)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("losses", [1, 4])
def test_a_write_whose_answer_got_lost_is_still_ours(s3_env: Service, losses: int) -> None:
    way = LosesAnswers(s3_env.program.ports[0], losses)
    way.start()
    url = f"s3://mrmodel/{secrets.token_hex(8)}"
    direct, store = open_store(url), open_store(url, endpoint=way.endpoint)
    tag = store.put("lock", b"mine", if_absent=True)
    assert way.left == 0
    assert direct.get("lock") == Object(b"mine", tag)
    way.left = losses
    tag = store.put("lock", b"still mine", if_match=tag)
    assert way.left == 0
    assert direct.get("lock") == Object(b"still mine", tag)
    way.left = losses
    with pytest.raises(ConflictError):
        store.put("lock", b"still mine", if_absent=True)
    way.close()


def test_damaged_bytes_are_refused(s3_env: Service, tmp_path: Path) -> None:
    prefix = secrets.token_hex(8)
    store = open_store(f"s3://mrmodel/{prefix}")
    file = tmp_path / "file"
    file.write_bytes(b"whole")
    store.upload("a", file)
    client = boto3.client("s3", endpoint_url=s3_env.env()["MRMODEL_S3_ENDPOINT"])
    metadata = client.head_object(Bucket="mrmodel", Key=f"{prefix}/a")["Metadata"]
    client.put_object(Bucket="mrmodel", Key=f"{prefix}/a", Body=b"whale", Metadata=metadata)
    with pytest.raises(StorageError, match="SHA-256"):
        store.download("a", file)
    with pytest.raises(StorageError, match="SHA-256"):
        store.get("a")
    assert file.read_bytes() == b"whole"


def _all_calls(store: Store, folder: Path) -> list[Callable[[], object]]:
    file = folder / "file"
    file.write_bytes(b"x" * (9 << 20))
    return [
        lambda: store.put("a", b""),
        lambda: store.put("a", b"", if_absent=True),
        lambda: store.put("a", b"", if_match='"tag"'),
        lambda: store.get("a"),
        lambda: store.exists("a"),
        lambda: store.keys(),
        lambda: store.delete("a"),
        lambda: store.upload("a", file),
        lambda: store.download("a", file),
    ]


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_refused_and_never_repeated(
    s3_env: Service,
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    planted = "planted-" + secrets.token_hex(12)
    monkeypatch.setenv(variable, planted)
    started = time.monotonic()
    said, rule = [], r"s3://mrmodel/x: key .*(secret|access key|may)"
    with caplog.at_level(logging.DEBUG, logger="mrmodel"):
        for call in _all_calls(open_store("s3://mrmodel/x"), tmp_path):
            with pytest.raises(StorageError, match=rule) as caught:
                call()
            said.append(f"{caught.value!r} {caught.value} {caught.getrepr(style='long')}")
    assert time.monotonic() - started < 20  # A refusal is no outage.
    assert planted not in "".join(said) + caplog.text


def test_a_missing_bucket_is_named(s3_env: Service, tmp_path: Path) -> None:
    for call in _all_calls(open_store("s3://no-such-bucket/x"), tmp_path):
        with pytest.raises(StorageError, match="no such bucket"):
            call()


def test_no_credentials_at_all(s3_env: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="half of the credentials"):
        open_store("s3://mrmodel/x").get("a")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", os.devnull)
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        open_store("s3://mrmodel/x").get("a")
