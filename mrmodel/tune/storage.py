"""Optuna storages: PostgreSQL for several machines, a journal file for the processes of one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

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


def open_storage(address: str) -> BaseStorage:
    """Open the storage at an address, created if missing.

    Args:
        address: URL of a database (``postgresql://user:password@host/name``), or journal path.

    Raises:
        StorageError: the database is unreachable.
        ConfigError: its driver is not installed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" not in address:
        path = Path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_JournalLock(path)))
    # Imported here: a journal needs no database library.
    from sqlalchemy.exc import SQLAlchemyError

    try:
        # A connection closed by the server is replaced instead of raising an error.
        database = RDBStorage(address, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        rule = f"needs a driver: pip install 'mrmodel[services]' has that of PostgreSQL ({error})"
        raise ConfigError(VARIABLE, hide_user(address), rule) from None
    except SQLAlchemyError as error:
        said = hide_user(str(error.__cause__ or error))
        raise StorageError(hide_user(address), f"cannot be opened: {said}") from None
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
