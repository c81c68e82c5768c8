"""Optuna storages: PostgreSQL for several machines, a journal file for the processes of one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

import optuna
from optuna.storages import (
    BaseStorage,
    InMemoryStorage,
    JournalStorage,
    RDBStorage,
    get_storage,
)
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from mrmodel.addresses import scheme_of, shown
from mrmodel.errors import ConfigError, StorageError
from mrmodel.processes import hide_user

VARIABLE = "OPTUNA_STORAGE"
_JOURNAL = "journal.log"


def storage_address(state: Path) -> str:
    """URL for `open_storage`: the variable `OPTUNA_STORAGE`, or a journal file below `state`.

    Args:
        state: folder of this repository's state (``.mrmodel``).
    """
    return os.environ.get(VARIABLE) or str(state / "tune" / _JOURNAL)


def storage_scheme(address: str) -> str:
    """The scheme of a storage's address, such as ``postgresql+psycopg2``; empty: a journal path.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return scheme_of(address)
    except ValueError as error:
        raise ConfigError(VARIABLE, shown(address), str(error)) from None


def open_storage(address: str, create: bool = True) -> BaseStorage:
    """Open the storage at an address.

    Args:
        address: URL of a database (``postgresql+psycopg2://user:password@host/name``), or path of a
            journal.
        create: make the journal or the tables if they are missing; else they are as if empty.

    Raises:
        StorageError: the database is unreachable, or the journal cannot be opened.
        ConfigError: the address is invalid, or its driver is not installed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if storage_scheme(address):
        return _open_database(address, create)
    path = Path(address)
    try:
        if not create and not path.exists():
            return InMemoryStorage()
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_JournalLock(path)))
    except OSError as error:
        raise StorageError(address, f"cannot be opened: {error.strerror}") from None
    # Of JSON, and of Optuna, which takes for granted what the lines hold.
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        rule = f"is no journal of Optuna, or damaged: {error!r}"
        raise StorageError(address, rule) from None


def _open_database(address: str, create: bool) -> BaseStorage:
    # Imported here: a journal needs no database library.
    from sqlalchemy import create_engine, inspect, make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    # Of libpq, which else waits for as long as the network does.
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    try:
        url = make_url(address)
        url.get_dialect()
        if not create:
            if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
                return InMemoryStorage()
            engine = create_engine(url)
            if not inspect(engine).has_table("studies"):
                return InMemoryStorage()
            engine.dispose()
        # Braces would be fields of Optuna's. A connection closed by the server is replaced instead
        # of raising an error.
        plain = address.replace("{", "%7B").replace("}", "%7D")
        database = RDBStorage(plain, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        rule = f"its driver is not installed ({error}); `pip install 'mrmodel[services]'` has that "
        rule += "of PostgreSQL, for postgresql+psycopg2://"
        raise ConfigError(VARIABLE, shown(address), rule) from None
    except (ArgumentError, ValueError) as error:
        raise ConfigError(VARIABLE, shown(address), " ".join(str(error).split())) from None
    except SQLAlchemyError as error:
        said = " ".join(hide_user(str(error.__cause__ or error)).split())
        where = f"{VARIABLE} = {shown(address)!r}"
        raise StorageError(where, f"cannot be opened: {said}") from None
    # One shared cache; Optuna would wrap each study in its own.
    return get_storage(database)


class _JournalLock(JournalFileOpenLock):
    """A lock that the kernel releases when its process is killed; Optuna's own locks remain.

    An incomplete line of a killed process is removed, or the next line would be unreadable too.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._held: TextIO | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        file = Path(f"{self._journal}.lock").open("w")  # noqa: SIM115  # `release` closes it
        fcntl.flock(file, fcntl.LOCK_EX)
        self._held = file
        self._drop_part_of_line()
        return True

    def release(self) -> None:
        """Release the lock."""
        assert self._held is not None
        self._held.close()
        self._held = None

    def _drop_part_of_line(self) -> None:
        with self._journal.open("rb+") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end:
                file.seek(end - 1)
                if file.read(1) == b"\n":
                    break
                end -= 1
            if end < size:
                file.truncate(end)
