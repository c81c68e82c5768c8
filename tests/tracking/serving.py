"""`mlflow models serve` as a process, and questions to it."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.local.process import free_ports


@contextmanager
def serving(model: str, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Serve a model (a folder, or ``models:/name@alias``) while the block runs; its address."""
    (port,) = free_ports(1)
    command = ["mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    said = folder / "server.log"
    quiet = {**environment, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with said.open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=quiet, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 120
    try:
        while not _answers(address):
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def invoke(address: str, rows: list[dict[str, str]]) -> Any:
    """Answers to rows of a query and a video."""
    body = json.dumps({"inputs": rows}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/invocations", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
