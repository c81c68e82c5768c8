"""Connects to MLflow: a server, or a SQLite file below ``.mrmodel/``."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import chdir, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mrmodel.addresses import scheme_of, shown, sqlite_address
from mrmodel.errors import ConfigError, RegistryError
from mrmodel.files import one_at_a_time
from mrmodel.processes import hide_user
from mrmodel.text import shortened

ADDRESS_VARIABLE = "MLFLOW_TRACKING_URI"
# Of a message, in characters.
_LONGEST = 400
# For the first question to a server; where it is away, half a minute instead of twenty.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# Columns of MLflow's database that hold places of files.
_PLACES = (
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
    ("experiments", "artifact_location"),
)


def prepare_mlflow() -> None:
    """Import MLflow without its telemetry, progress bars and verbose logs."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow.tracking  # noqa: F401

    # The import sets log levels, and creating the schema logs every step.
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def open_experiment(name: str, state: Path) -> tuple[Any, str]:
    """A client, and the id of the experiment called `name`, which is created if missing.

    Args:
        name: of the experiment.
        state: folder of the database and artifacts where no server is configured (``.mrmodel``).

    Raises:
        ConfigError: `MLFLOW_TRACKING_URI` holds no address; nothing was created.
        Exception: MLflow's, SQLAlchemy's, or an OSError: it does not answer (`mlflow_faults`).
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    if address:
        _check(address)
    prepare_mlflow()
    from mlflow.tracking import MlflowClient

    if address:
        address = _database(address) or address
        with _short_patience():
            client = MlflowClient(address)
            return client, _experiment(client, name, None)
    database, artifacts = (state / "mlflow.db").resolve(), (state / "mlartifacts").resolve()
    # Two stages that create the database at once would both create its tables.
    with one_at_a_time(state / "mlflow.lock"):
        address = sqlite_address(database)
        _require_answer(address)
        _follow_move(database, artifacts)
        with _elsewhere():
            client = MlflowClient(address)
        return client, _experiment(client, name, artifacts.as_uri())


def open_for_user(name: str, state: Path) -> tuple[Any, str]:
    """As `open_experiment`, for a command that cannot go on without MLflow.

    Raises:
        ConfigError: `MLFLOW_TRACKING_URI` holds no address.
        RegistryError: MLflow does not answer, or its database cannot be opened.
    """
    try:
        return open_experiment(name, state)
    except mlflow_faults() as error:
        address = os.environ.get(ADDRESS_VARIABLE)
        where = f"{ADDRESS_VARIABLE} = {shown(address)!r}" if address else state / "mlflow.db"
        raise RegistryError(f"{where}: cannot be opened: {said_by_mlflow(error)}") from None


def mlflow_faults() -> tuple[type[Exception], ...]:
    """What MLflow raises where a server, a database or a driver is missing."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # Some host names cannot be encoded, which is a UnicodeError.
    return MlflowException, SQLAlchemyError, OSError, ImportError, UnicodeError


def said_by_mlflow(error: Exception) -> str:
    """The message of one of `mlflow_faults` as one line without passwords."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    return shortened(hide_user(text), _LONGEST)


def _check(address: str) -> None:
    """Raise ConfigError for what is neither an address nor a folder nor a name that MLflow has."""
    rule = ""
    try:
        scheme = scheme_of(address)
        if scheme in ("http", "https"):
            parts = urlsplit(address)
            # `port` raises ValueError for one that is no number.
            rule = "" if parts.hostname and parts.port != 0 else "names no host"
        elif not scheme and not address.startswith("databricks") and not Path(address).is_dir():
            rule = "is no address, such as http://host:5000 or sqlite:////folder/mlflow.db"
    except ValueError as error:
        rule = str(error)
    if rule:
        raise ConfigError(ADDRESS_VARIABLE, shown(address), rule)


def _database(address: str) -> str | None:
    """The address of a database that answers, as MLflow is to read it; None: it is no database."""
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if scheme_of(address).partition("+")[0] not in DATABASE_ENGINES:
        return None
    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(ADDRESS_VARIABLE, shown(address), said_by_mlflow(error)) from None
    if url.get_backend_name() == "sqlite" and url.database and not url.query:
        address = sqlite_address(Path(url.database))
    _require_answer(address)
    return address


def _require_answer(address: str) -> None:
    """Raise what SQLAlchemy raises, at once; MLflow would try again for minutes."""
    from sqlalchemy import create_engine, inspect

    # Of libpq, which else waits for as long as the network does.
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    engine = create_engine(address)
    try:
        inspect(engine).get_table_names()
    finally:
        engine.dispose()


@contextmanager
def _short_patience() -> Iterator[None]:
    """MLflow's own patience is 20 minutes; what the user has set stays."""
    added = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Leave the current folder for the block if its name has both kinds of quotation marks.

    MLflow pastes it into the SQL of a new database, quoted as in Python.
    """
    here = str(Path.cwd())
    with chdir("/") if "'" in here and '"' in here else nullcontext():
        yield


def _follow_move(database: Path, artifacts: Path) -> None:
    """Make the places in the database those of the files after the project was moved or copied.

    MLflow keeps absolute places: it reads others from the current folder, whichever that is.
    """
    from mlflow.utils.file_utils import local_file_uri_to_path

    new = artifacts.as_uri()
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        if "experiments" not in tables:
            return
        found = connection.execute("SELECT DISTINCT artifact_location FROM experiments")
        for (old,) in found.fetchall():
            # Experiments that somebody else made have their files elsewhere.
            if not old or old == new or old.rpartition("/")[2] != artifacts.name:
                continue
            # Files that stayed behind are still read there.
            stayed = not artifacts.exists() and Path(local_file_uri_to_path(old)).exists()
            for table, column in _PLACES[-1:] if stayed else _PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # Another process created it in between.
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)
