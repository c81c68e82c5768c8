"""All four servers as one installation: its ports, secrets and running processes."""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from infra.local.postgres import Postgres
from infra.local.process import Program, Running, ServiceError, free_ports
from infra.local.seaweedfs import (
    BUCKET,
    IDENTITIES,
    INCOMING,
    INNER_PORTS,
    REGISTRY,
    SENDER,
    WORKER,
    SeaweedFS,
)
from infra.local.web import MLflow, Prefect
from mrmodel.files import atomic_path, one_at_a_time

# Default ports, except for PostgreSQL and MLflow, whose defaults are often in use.
PORTS = {"postgres": 55432, "seaweedfs": 8333, "mlflow": 5050, "prefect": 4200}
# Optuna's database, which workers access directly.
STUDIES = "optuna"
_SETTINGS, _RUNNING = "installation.json", "running.json"
# S3 identity -> file that a shell reads: for whoever promotes, workers that run stages, senders.
EXPORTS = {REGISTRY: "env", WORKER: "env-worker", SENDER: "env-sender"}


@dataclass(frozen=True)
class Settings:
    """Settings that are kept between starts.

    Args:
        ports: of the four servers, by name.
        inner_ports: those between the parts of SeaweedFS.
        password: of PostgreSQL's user.
        s3_secrets: secret key of each S3 identity, see `SeaweedFS`.
        prefect_password: of Prefect's API.
    """

    ports: Mapping[str, int]
    inner_ports: Sequence[int]
    password: str
    s3_secrets: Mapping[str, str]
    prefect_password: str


def _drawn() -> dict[str, Any]:
    """New secrets; that of PostgreSQL is kept with its data."""
    s3_secrets = {name: secrets.token_hex(16) for name in IDENTITIES}
    return {"s3_secrets": s3_secrets, "prefect_password": secrets.token_hex(16)}


@dataclass(frozen=True)
class State:
    """State of a server.

    Args:
        name: of the server.
        port: on which it listens.
        word: ``runs``, ``gives no answer``, ``died`` or ``stopped``.
        running: its recorded process, unless it is stopped.
    """

    name: str
    port: int
    word: str
    running: Running | None = None


@dataclass(frozen=True)
class _Servers:
    postgres: Postgres
    seaweedfs: SeaweedFS
    mlflow: MLflow
    prefect: Prefect

    def all(self) -> list[Postgres | SeaweedFS | MLflow | Prefect]:
        """In start order."""
        return [self.postgres, self.seaweedfs, self.mlflow, self.prefect]


class Services:
    """The servers of one folder.

    Args:
        folder: their data, logs, settings and secrets.
        owner: process with which they end; None: they run until `stop`.
        durable: see `Postgres`.
    """

    def __init__(self, folder: Path, owner: int | None = None, durable: bool = True) -> None:
        self._folder, self._owner, self._durable = folder.absolute(), owner, durable

    def up(self, ports: Mapping[str, int] | None = None, redraw: bool = False) -> list[State]:
        """Start the servers that do not run, and wait until all are healthy.

        Args:
            ports: ports that replace those of the last start, by name of the server.
            redraw: replace all others by free ports.

        Returns:
            The states before this call; the log of a server that died tells why.

        Raises:
            ServiceError: one does not start; those that this call started are stopped again.
        """
        with one_at_a_time(self._folder / "lock"):
            self._keep_others_out()
            before = self.states()
            settings = self._settle(ports or {}, redraw, before)
            servers = self._servers(settings)
            self._make_room(servers)
            # Saved before anything is created with these secrets.
            self._write(_SETTINGS, json.dumps(asdict(settings), indent=2, allow_nan=False))
            started: list[Running] = []
            try:
                self._start(servers, started)
            except BaseException:
                self._end(started)
                raise
            self._write_exports(servers)
        return before

    def stop(self) -> list[str]:
        """Stop all servers and leftovers of those that died; the names of those that ran."""
        with one_at_a_time(self._folder / "lock"):
            recorded = list(self._recorded().values())
            ran = [one.name for one in recorded if one.alive()]
            self._end(recorded)
            for file in EXPORTS.values():
                (self._folder / file).unlink(missing_ok=True)
        return ran

    def states(self) -> list[State]:
        """The current state of each server."""
        settings = self._settings()
        if settings is None:
            return [State(name, port, "stopped") for name, port in PORTS.items()]
        recorded, found = self._recorded(), []
        for server in self._servers(settings).all():
            running = recorded.get(server.name)
            if running is None:
                word = "stopped"
            elif not running.alive():
                word = "died"
            else:
                word = "runs" if server.healthy() else "gives no answer"
            found.append(State(server.name, server.port, word, running))
        return found

    def _write_exports(self, servers: _Servers) -> None:
        """Write shell lines that make programs use these servers: a file for each S3 identity."""
        s3, incoming = servers.seaweedfs, {"MRMODEL_INCOMING": f"s3://{INCOMING}"}
        places = {
            "OPTUNA_STORAGE": servers.postgres.url(STUDIES),
            "MRMODEL_DVC_REMOTE": f"s3://{BUCKET}/dvc",
            "MRMODEL_HANDOVER": f"s3://{BUCKET}/handover",
            "MRMODEL_REGISTRY": f"s3://{BUCKET}/registry",
            **incoming,
        }
        common = {**servers.prefect.environment(), **servers.mlflow.environment(), **places}
        for identity, file in EXPORTS.items():
            rest = {**incoming, "AWS_ENDPOINT_URL": s3.endpoint} if identity == SENDER else common
            values = {**rest, **s3.environment(identity)}
            lines = (f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
            self._write(file, "".join(lines))

    def _keep_others_out(self) -> None:
        """Let no other user read data, logs or secrets.

        Where root starts the servers, the account that runs PostgreSQL must reach its data here.
        """
        self._folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        for path in self._folder.glob("*"):
            if path.name != Postgres.name:  # of that account, and private
                path.chmod(0o700 if path.is_dir() else 0o600)

    def _make_room(self, servers: _Servers) -> None:
        """Kill leftovers of dead servers; raise ServiceError if a port is in use."""
        recorded = self._recorded()
        for program in [server.program() for server in servers.all()]:
            running = recorded.get(program.name)
            if running is not None and running.alive():
                continue
            if running is not None:
                running.stop()
            program.require_ports()

    def _start(self, servers: _Servers, started: list[Running]) -> None:
        servers.postgres.prepare()
        servers.seaweedfs.prepare()
        self._launch([servers.postgres.program(), servers.seaweedfs.program()], started)
        for database in (servers.mlflow.database, servers.prefect.database, STUDIES):
            servers.postgres.create_database(database)
        self._launch([servers.mlflow.program(), servers.prefect.program()], started)

    def _launch(self, programs: list[Program], started: list[Running]) -> None:
        """Start the programs that do not run, then wait for all of them."""
        waiting = []
        for program in programs:
            recorded = self._recorded()
            running = recorded.get(program.name)
            if running is None or not running.alive():
                running = program.start(self._owner)
                started.append(running)
                self._record({**recorded, program.name: running})
            waiting.append((program, running))
        for program, running in waiting:
            program.wait(running)

    def _end(self, running: list[Running]) -> None:
        for one in reversed(running):
            one.stop()
            self._record({k: v for k, v in self._recorded().items() if k != one.name})

    def _servers(self, settings: Settings) -> _Servers:
        ports = settings.ports
        postgres = Postgres(self._folder, ports["postgres"], settings.password, self._durable)
        seaweedfs = SeaweedFS(
            self._folder,
            ports["seaweedfs"],
            tuple(settings.inner_ports),
            settings.s3_secrets,
        )
        mlflow = MLflow(self._folder, ports["mlflow"], postgres, seaweedfs)
        password = settings.prefect_password
        prefect = Prefect(self._folder, ports["prefect"], postgres, password)
        return _Servers(postgres, seaweedfs, mlflow, prefect)

    def _settle(self, ports: Mapping[str, int], redraw: bool, before: Sequence[State]) -> Settings:
        """Settings for this start: those of the last one, or new ones, with updated ports."""
        settings = self._settings() or Settings(
            ports=PORTS,
            inner_ports=free_ports(len(INNER_PORTS)),
            password=secrets.token_hex(16),
            **_drawn(),
        )
        drawn = dict(zip(PORTS, free_ports(len(PORTS)), strict=True)) if redraw else {}
        wanted = {**settings.ports, **drawn, **ports}
        if wanted != settings.ports and any(state.word != "stopped" for state in before):
            raise ServiceError("the ports of running servers stay; stop them first")
        settings = replace(settings, ports=wanted)
        if redraw:
            settings = replace(settings, inner_ports=free_ports(len(INNER_PORTS)))
        return settings

    def _settings(self) -> Settings | None:
        file = self._folder / _SETTINGS
        if not file.exists():
            return None
        # Earlier releases had other secrets; the next start keeps those drawn here.
        found = {**_drawn(), **json.loads(file.read_text())}
        return Settings(**{field.name: found[field.name] for field in fields(Settings)})

    def _recorded(self) -> dict[str, Running]:
        file = self._folder / _RUNNING
        rows = json.loads(file.read_text()) if file.exists() else []
        return {row["name"]: Running(**row) for row in rows}

    def _record(self, running: Mapping[str, Running]) -> None:
        self._write(
            _RUNNING,
            json.dumps([one.record() for one in running.values()], indent=2, allow_nan=False),
        )

    def _write(self, name: str, text: str) -> None:
        """Write a file that only its owner can read."""
        with atomic_path(self._folder / name) as temporary:
            temporary.chmod(0o600)
            temporary.write_text(text)
