"""Real servers for tests, started when a test first asks for one, and gone with the session.

Each is one of those of `make services`, on free ports and in a folder of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from infra.local.ports import free_ports
from infra.local.process import Program, Running
from infra.local.seaweedfs import INNER_PORTS, SeaweedFS


class Service:
    """A server that a test may stop and start again, at the same address with the same data."""

    def __init__(self, program: Program, environment: Mapping[str, str]) -> None:
        self.program = program
        self._environment = dict(environment)
        self.running: Running | None = None

    def env(self) -> dict[str, str]:
        """Variables for programs that shall use it."""
        return dict(self._environment)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.running = self.program.start(tied=True)
        self.program.wait(self.running)

    def stop(self) -> None:
        """Stop it in order."""
        if self.running is not None:
            self.running.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        if self.running is not None:
            self.running.kill()


def s3_server(folder: Path) -> Service:
    """An S3 server with an empty bucket ``mrmodel``, not yet started."""
    port, *inner = free_ports(1 + len(INNER_PORTS))
    server = SeaweedFS(folder, port, tuple(inner), "test-key", secrets.token_hex(16))
    return Service(server.program(), server.environment())


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An S3 server; take a prefix of your own in its bucket ``mrmodel``."""
    service = s3_server(tmp_path_factory.mktemp("s3"))
    service.start()
    yield service
    service.stop()
