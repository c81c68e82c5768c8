"""The MLflow and the Prefect server, each with a PostgreSQL database."""

from __future__ import annotations

import sys
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar

from infra.local.postgres import USER, Postgres
from infra.local.process import Program
from infra.local.seaweedfs import BUCKET, SeaweedFS

_QUIET = {"DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class MLflow:
    """The tracking server and registry; artifacts are proxied to S3.

    Args:
        folder: of its log.
        port: of 127.0.0.1.
        postgres: its database server, running, with a database named `database`.
        s3: stores the artifacts.
        database: name of its database, and of its folder in the bucket.
    """

    folder: Path
    port: int
    postgres: Postgres
    s3: SeaweedFS
    database: str = "mlflow"
    name: ClassVar[str] = "mlflow"

    @property
    def url(self) -> str:
        """Tracking URI."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Variables that a client needs to connect."""
        return {"MLFLOW_TRACKING_URI": self.url}

    def healthy(self) -> bool:
        """Whether it responds."""
        return _answers(f"{self.url}/health")

    def program(self) -> Program:
        """The server as a process; it creates its tables at its first start."""
        return Program(
            name=self.name,
            command=[
                *(sys.executable, "-m", "mlflow", "server"),
                *("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
                *("--artifacts-destination", f"s3://{BUCKET}/{self.database}"),
            ],
            folder=self.folder,
            ports=(self.port,),
            healthy=self.healthy,
            environment={
                **_QUIET,
                **self.s3.environment(),
                "MLFLOW_S3_ENDPOINT_URL": self.s3.endpoint,
                "MLFLOW_BACKEND_STORE_URI": self.postgres.url(self.database),
                "MLFLOW_DISABLE_TELEMETRY": "true",
                # It would start four more processes for jobs that are not used here.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
        )


@dataclass(frozen=True)
class Prefect:
    """The Prefect API, its services (schedules, automations, heartbeats) and its UI.

    Args:
        folder: of its log and its settings.
        port: of 127.0.0.1.
        postgres: its database server, running, with a database named `database`.
        password: of its API and its UI.
        database: name of its database.
    """

    folder: Path
    port: int
    postgres: Postgres
    password: str
    database: str = "prefect"
    name: ClassVar[str] = "prefect"

    @property
    def url(self) -> str:
        """URL of the API."""
        return f"http://127.0.0.1:{self.port}/api"

    def environment(self) -> dict[str, str]:
        """Variables that a client needs to connect."""
        return {"PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": self._login}

    @property
    def _login(self) -> str:
        return f"{USER}:{self.password}"

    def healthy(self) -> bool:
        """Whether it and its database respond."""
        return _answers(f"{self.url}/ready")

    def program(self) -> Program:
        """The server as a process; it creates its tables at its first start."""
        where = ("--host", "127.0.0.1", "--port", str(self.port))
        address = self.postgres.url(self.database, "postgresql+asyncpg")
        # Of the pages that may call the API: its own UI's.
        origins = (f"http://{host}:{self.port}" for host in ("127.0.0.1", "localhost"))
        return Program(
            name=self.name,
            command=[sys.executable, "-m", "prefect", "server", "start", *where],
            folder=self.folder,
            ports=(self.port,),
            healthy=self.healthy,
            environment={
                **_QUIET,
                "PREFECT_HOME": str(self.folder / "prefect"),
                "PREFECT_API_DATABASE_CONNECTION_URL": address,
                "PREFECT_SERVER_API_AUTH_STRING": self._login,
                "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            },
        )


def _answers(url: str) -> bool:
    """Whether a URL responds with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False
