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
    """Where the server runs and who may use it.

    Args:
        folder: its log, and its data where the account that runs it can go there.
        port: of 127.0.0.1; it has no other door.
        password: of the only user, `USER`.
        durable: data survives a crash of the machine (not only of the server); tests do without.
    """

    folder: Path
    port: int
    password: str
    durable: bool = True
    name: ClassVar[str] = "postgres"

    def url(self, database: str, driver: str = "postgresql+psycopg2") -> str:
        """Address of a database for SQLAlchemy, which takes another driver unless told.

        It holds the password: for environments, never for command lines.
        """
        return f"{driver}://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        """Make the database cluster unless it exists.

        Raises:
            ServiceError: PostgreSQL is not installed, or cannot make it.
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
                # Nothing that root writes or gives away lies where that account could replace it.
                shutil.chown(secret.name, account)
                os.chown(home, pwd.getpwnam(account).pw_uid, -1, follow_symlinks=False)
            self._initialise([*as_account(account), str(initdb)], draft, secret.name)
        draft.rename(data)  # Only now: of a killed initdb nothing looks finished.

    def program(self) -> Program:
        """The server as a process, once `prepare` has run.

        Raises:
            ServiceError: PostgreSQL is not installed, or not in the version of the data.
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
            cwd=Path("/"),  # A folder that its account can surely read.
            ports=(self.port,),
            healthy=self.healthy,
            stop_signal=signal.SIGINT,  # SIGTERM would wait until all clients have gone.
        )

    def home(self) -> Path:
        """Folder of the cluster.

        The account that runs the server for root cannot go through a folder that is private to
        root, such as /root or the temporary folders of pytest; then it lies below /var/tmp.

        Raises:
            ServiceError: somebody else owns that folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        home = self.folder / self.name
        enter = [*as_account(account_of(home)), "test", "-x", str(self.folder)]
        if subprocess.run(enter, check=False).returncode == 0:
            return home
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        home = PUBLIC / f"mrmodel-postgres-{name}"
        # Everybody may write to /var/tmp, so another user may have been there before.
        if home.is_symlink():
            raise ServiceError(f"{home} is a link that somebody else may have made; remove it")
        account_of(home)
        return home

    def create_database(self, name: str) -> None:
        """Make a database unless it exists."""
        # Not `with`: that would open a transaction, in which no database can be made.
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
