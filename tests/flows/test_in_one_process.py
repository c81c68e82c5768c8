"""``python -m flows.pipeline`` without workers: with the temporary server that Prefect starts."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.project import Project


@contextmanager
def proxy_that_refuses() -> Iterator[tuple[str, list[str]]]:
    """Address of a proxy, and the first line of every request that it was sent."""
    requests: list[str] = []

    class Refuse(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            requests.append(self.rfile.readline().decode(errors="replace").strip())
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", requests
        finally:
            server.shutdown()


@pytest.mark.services
def test_a_run_logs_no_error_and_sends_nothing_away(reproduced: Project, tmp_path: Path) -> None:
    """One stage has to run. All that would go to the internet goes to a proxy of the test."""
    reproduced.keep_studies("seed_run", "seeds")
    reproduced.git("add", "dvc.lock", "studies")
    reproduced.git("commit", "-q", "-m", "results")
    with proxy_that_refuses() as (address, requests):
        variables = [
            f"PREFECT_HOME={tmp_path}",
            *(f"{name}={address}" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")),
            "NO_PROXY=127.0.0.1,localhost",
        ]
        change = ("--set", "evaluate.bootstrap_resamples=150")
        command = ("python", "-m", "flows.pipeline", "--target", "evaluate", *change)
        output = reproduced.run("env", *variables, *command)
    assert "Starting temporary server" in output
    assert "| evaluate | ran |" in output
    assert [line for line in output.splitlines() if "ERROR" in line or "telemetry" in line] == []
    assert requests == []
    assert "\ngit merge runs/" in output
