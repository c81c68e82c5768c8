"""A PostgreSQL server for Prefect, MLflow and searches."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psycopg2

from infra.local.postgres_programs import PUBLIC, account_of, as_account, programs_for
from infra.local.process import Program, ServiceError, own_environment

USER = "mrmodel"


@dataclass(frozen=True)
class Postgres:
    """Settings of the server.

    Args:
        folder: its log, and its data if the account that runs it can access the folder.
        port: of 127.0.0.1, its only interface.
        password: of the only user, `USER`.
        durable: data survive a crash of the machine (not only of the server); off in tests.
    """

    folder: Path
    port: int
    password: str
    durable: bool = True
    name: ClassVar[str] = "postgres"

    def url(self, database: str, driver: str = "postgresql+psycopg2") -> str:
        """URL of a database for SQLAlchemy, with an explicit driver.

        It contains the password: pass it in environments, never on command lines.
        """
        return f"{driver}://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        """Create the database cluster if it does not exist.

        Raises:
            ServiceError: PostgreSQL is not installed, or cannot create it.
        """
        home = self.home()
        data, account = home / "data", account_of(home)
        if (data / "PG_VERSION").exists():
            return
        initdb = programs_for(data, account) / "initdb"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = home / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        with tempfile.NamedTemporaryFile("w", prefix="mrmodel-", dir=PUBLIC) as secret:
            secret.write(self.password)
            secret.flush()
            if account is not None:
                # Files that root writes must not be in a folder that the account can modify.
                shutil.chown(secret.name, account)
                os.chown(home, pwd.getpwnam(account).pw_uid, -1, follow_symlinks=False)
            self._initialise([*as_account(account), str(initdb)], draft, secret.name)
        draft.rename(data)  # Last: a killed initdb leaves nothing that looks complete.

    def program(self) -> Program:
        """The server as a process, after `prepare` has run.

        Raises:
            ServiceError: PostgreSQL is not installed, or its version does not match the data.
        """
        home = self.home()
        data, account = home / "data", account_of(home)
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "on" if self.durable else "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        server = str(programs_for(data, account) / "postgres")
        return Program(
            name=self.name,
            command=[*as_account(account), server, "-D", str(data), "-p", str(self.port), *options],
            folder=self.folder,
            cwd=Path("/"),  # A folder that every account can read.
            ports=(self.port,),
            healthy=self.healthy,
            stop_signal=signal.SIGINT,  # SIGTERM would wait until all clients disconnect.
        )

    def home(self) -> Path:
        """Folder of the cluster.

        If root runs the server as another account, and that account cannot access `folder` (e.g.
        /root or the temporary folders of pytest), the cluster is below /var/tmp.

        Raises:
            ServiceError: another user owns that folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        home = self.folder / self.name
        enter = [*as_account(account_of(home)), "test", "-x", str(self.folder)]
        if subprocess.run(enter, check=False).returncode == 0:
            return home
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        home = PUBLIC / f"mrmodel-postgres-{name}"
        # /var/tmp is world-writable, so another user may have created it.
        if home.is_symlink():
            raise ServiceError(f"{home} is a link that somebody else may have made; remove it")
        account_of(home)
        return home

    def create_database(self, name: str) -> None:
        """Create a database if it does not exist."""
        # Not `with`: that would open a transaction, in which no database can be created.
        connection = self._connect()
        try:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is None:
                cursor.execute(f'CREATE DATABASE "{name}"')
        finally:
            connection.close()

    def _connect(self) -> Any:
        return psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=self.password,
            dbname="postgres",
            connect_timeout=5,
        )

    def _initialise(self, initdb: list[str], data: Path, secret: str) -> None:
        options = [
            f"--pgdata={data}",
            f"--username={USER}",
            f"--pwfile={secret}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]
        done = subprocess.run(
            [*initdb, *options, *([] if self.durable else ["--no-sync"])],
            cwd="/",
            env=own_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServiceError(f"initdb could not make {data}:\n{done.stderr.strip()}")

    def healthy(self) -> bool:
        """Whether its user can log in."""
        try:
            self._connect().close()
        except psycopg2.OperationalError:
            return False
        return True
