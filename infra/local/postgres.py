"""A PostgreSQL server from Debian's package, for Prefect, MLflow and searches."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psycopg2

from infra.local.process import Program, ServiceError, own_environment

USER = "mrmodel"
INSTALL = "PostgreSQL is missing. Debian: apt-get install postgresql"
_DEBIAN = Path("/usr/lib/postgresql")
# PostgreSQL refuses to run as root; the first of these that exists runs it then.
_SERVANTS = ("postgres", "nobody")
_FALLBACK = Path("/var/tmp")


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
            ServiceError: PostgreSQL is not installed, or will not.
        """
        home, servant = self.home(), _servant()
        data = home / "data"
        if (data / "PG_VERSION").exists():
            return
        programs = _programs(data)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret, draft = home / "password", home / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if servant is not None:
            shutil.chown(home, servant)
            shutil.chown(secret, servant)
        try:
            self._initialise(programs, draft, secret)
        finally:
            secret.unlink()
        draft.rename(data)  # Only now: of a killed initdb nothing looks finished.

    def program(self) -> Program:
        """The server as a process, once `prepare` has run.

        Raises:
            ServiceError: PostgreSQL is not installed, or not in the version of the data.
        """
        data = self.home() / "data"
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "on" if self.durable else "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        server = str(_programs(data) / "postgres")
        return Program(
            name=self.name,
            command=[*_as_servant(), server, "-D", str(data), "-p", str(self.port), *options],
            folder=self.folder,
            cwd=Path("/"),  # A folder that its account can surely read.
            ports=(self.port,),
            healthy=self.healthy,
            stop_signal=signal.SIGINT,  # SIGTERM would wait until all clients have gone.
        )

    def home(self) -> Path:
        """Folder of the cluster.

        Root's servant cannot go through a folder that is private to root, such as /root or the
        temporary folders of pytest; then the cluster lies below /var/tmp.

        Raises:
            ServiceError: somebody else owns that folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        looked = subprocess.run([*_as_servant(), "test", "-x", str(self.folder)], check=False)
        if looked.returncode == 0:
            return self.folder / self.name
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        home = _FALLBACK / f"mrmodel-postgres-{name}"
        # Everybody may write to /var/tmp, so another user may have been there before.
        if home.is_symlink() or (home.exists() and home.owner() not in ("root", _servant())):
            raise ServiceError(f"{home} belongs to somebody else; remove it")
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

    def _initialise(self, programs: Path, data: Path, secret: Path) -> None:
        options = [
            f"--pgdata={data}",
            f"--username={USER}",
            f"--pwfile={secret}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]
        done = subprocess.run(
            [
                *_as_servant(),
                str(programs / "initdb"),
                *options,
                *([] if self.durable else ["--no-sync"]),
            ],
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


def _programs(data: Path) -> Path:
    """Folder of PostgreSQL's programs: the newest, or those of the version of existing data."""
    found = sorted(
        (path.parent for path in _DEBIAN.glob("*/bin/initdb")),
        key=lambda path: float(path.parent.name),
    )
    on_path = shutil.which("initdb")
    if not found and on_path is not None:
        return Path(on_path).resolve().parent
    if not found:
        raise ServiceError(INSTALL)
    if (data / "PG_VERSION").exists():
        version = (data / "PG_VERSION").read_text().strip()
        found = [path for path in found if path.parent.name == version]
        if not found:
            raise ServiceError(
                f"{data} was written by PostgreSQL {version}, which is not installed any more. "
                f"Debian: apt-get install postgresql-{version}; or remove that folder"
            )
    return found[-1]


def _servant() -> str | None:
    """The account that runs the server; None for the one that runs this."""
    if os.geteuid() != 0:
        return None
    for name in _SERVANTS:
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise ServiceError("PostgreSQL refuses to run as root, and there is no user 'postgres'")


def _as_servant() -> list[str]:
    """Words before a command that run it as the servant, in the same process."""
    name = _servant()
    if name is None:
        return []
    account = pwd.getpwnam(name)
    return ["setpriv", f"--reuid={name}", f"--regid={account.pw_gid}", "--clear-groups"]
