"""Real servers for tests, started when a test first asks for one.

They are those of `make services`, on free ports and in folders of their own. PostgreSQL and S3 are
gone with the session. MLflow and Prefect, which use up to a tenth of a core while nobody asks them,
are gone with the file of tests; what they keep stays in the database. Each fixture lives in its
test process: tests that use one server together belong into one file.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from infra.local.postgres import Postgres
from infra.local.process import Program, Running, free_ports
from infra.local.seaweedfs import IDENTITIES, INNER_PORTS, SeaweedFS
from infra.local.web import MLflow, Prefect

# Beside the data of a database server: the process whose tests it serves.
SESSION = "session"


class Service:
    """A server that a test may stop and start again, at the same address with the same data.

    Args:
        program: how it is started; it ends with this process.
        url: its address, for those who need no more.
        environment: variables for programs that shall use it.
    """

    def __init__(self, program: Program, url: str, environment: Mapping[str, str]) -> None:
        self.program, self.url, self._environment = program, url, dict(environment)
        self.running: Running | None = None

    def env(self) -> dict[str, str]:
        """Variables for programs that shall use it, with credentials."""
        return dict(self._environment)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.running = self.program.start(owner=os.getpid())
        self.program.wait(self.running)

    def stop(self) -> None:
        """Stop it in order."""
        if self.running is not None:
            self.running.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        if self.running is not None:
            self.running.kill()


class PostgresService(Service):
    """A PostgreSQL server; `url` is the address of an empty database for SQLAlchemy."""

    def __init__(self, server: Postgres) -> None:
        super().__init__(server.program(), server.url("test"), {})
        self.server = server

    def database(self, name: str) -> str:
        """Address of a database of that name, made when there is none."""
        self.server.create_database(name)
        return self.server.url(name)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.server.prepare()
        (self.server.home() / SESSION).write_text(str(os.getpid()))
        super().start()
        self.server.create_database("test")


class S3Service(Service):
    """An S3 server with an empty bucket ``mrmodel``."""

    def __init__(self, server: SeaweedFS) -> None:
        super().__init__(server.program(), server.endpoint, server.environment())
        self.server = server

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.server.prepare()
        super().start()


def s3_server(folder: Path) -> S3Service:
    """An S3 server of one's own, not yet started."""
    port, *inner = free_ports(1 + len(INNER_PORTS))
    keys = {name: secrets.token_hex(16) for name in IDENTITIES}
    return S3Service(SeaweedFS(folder, port, tuple(inner), keys))


def postgres_server(folder: Path) -> PostgresService:
    """A PostgreSQL server of one's own, not yet started."""
    server = Postgres(folder, *free_ports(1), secrets.token_hex(16), durable=False)
    _sweep(server.home().parent)
    return PostgresService(server)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Service]:
    """An S3 server; take a prefix of your own in its bucket ``mrmodel``."""
    service = s3_server(tmp_path_factory.mktemp("s3"))
    with _while_used(service):
        yield service


@pytest.fixture
def s3_env(s3: S3Service, monkeypatch: pytest.MonkeyPatch) -> S3Service:
    """The S3 server, and its address and credentials in the environment."""
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def own_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Service]:
    """An S3 server that a test may stop, as `s3_env` otherwise."""
    service = s3_server(tmp_path / "own")
    for name, value in service.env().items():
        monkeypatch.setenv(name, value)
    service.start()
    yield service
    service.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresService]:
    """A PostgreSQL server; take a database of your own."""
    service = postgres_server(tmp_path_factory.mktemp("postgres"))
    with _while_used(service):
        yield service
    shutil.rmtree(service.server.home())  # It may lie outside of pytest's folder.


@pytest.fixture(scope="module")
def mlflow_server(
    postgres: PostgresService, s3: S3Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """An MLflow server on PostgreSQL and S3; `url` is the tracking address."""
    postgres.database("mlflow")
    folder = tmp_path_factory.mktemp("mlflow")
    server = MLflow(folder, *free_ports(1), postgres.server, s3.server)
    with _while_used(Service(server.program(), server.url, server.environment())) as service:
        yield service


@pytest.fixture(scope="module")
def prefect_server(
    postgres: PostgresService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A Prefect server on PostgreSQL, with its services; `url` is the address of the API."""
    postgres.database("prefect")
    folder = tmp_path_factory.mktemp("prefect")
    server = Prefect(folder, *free_ports(1), postgres.server, secrets.token_hex(16))
    # Clients would keep their own state in the home of whoever runs the tests.
    environment = {**server.environment(), "PREFECT_HOME": str(folder / "client")}
    with _while_used(Service(server.program(), server.url, environment)) as service:
        yield service


def _sweep(folder: Path) -> None:
    """Remove the databases of test sessions that were killed: those outside of pytest's folder."""
    for session in folder.glob(f"mrmodel-postgres-*/{SESSION}"):
        with suppress(OSError):
            if not psutil.pid_exists(int(session.read_text())):
                shutil.rmtree(session.parent, ignore_errors=True)


@contextmanager
def _while_used(service: Service) -> Iterator[Service]:
    service.start()
    try:
        yield service
    finally:
        service.stop()
