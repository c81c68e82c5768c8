"""`mrmodel serve` as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.project import ROOT

# A busy machine takes its time.
PATIENCE_S = 300.0
LOG = "server.log"


class ServerProcess:
    """A server that runs.

    Attributes:
        url: its address.
        client: asks there.
        process: of the operating system.
        folder: the current one of the process.
    """

    def __init__(self, port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)
        self.process, self.folder = process, folder

    def log(self) -> str:
        return (self.folder / LOG).read_text()

    def job(self, answer: httpx.Response) -> dict[str, Any]:
        """The job that a request began, once it has ended."""
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()["job"]
        deadline = time.monotonic() + PATIENCE_S
        while job["state"] in ("queued", "running"):
            assert time.monotonic() < deadline, job
            time.sleep(0.1)
            job = self.client.get(f"/v1/jobs/{job['id']}").json()
        return job

    def memory_mb(self) -> float:
        """Resident, of the server and its children."""
        own = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in [own, *own.children(recursive=True)]) / 1e6

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[ServerProcess]:
    """A server with `folder` as its current one, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mrmodel.cli.main", "serve", "--port", str(port), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (
        (folder / LOG).open("w") as file,
        subprocess.Popen(command, cwd=folder, env=environment, stderr=file) as process,
    ):
        server = ServerProcess(port, process, folder)
        try:
            _wait(server)
            yield server
        finally:
            process.kill()
            server.client.close()


def _wait(server: ServerProcess) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if server.client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(server.log())
