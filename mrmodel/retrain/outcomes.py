"""The outcome of each delivery: one object each, written once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mrmodel.errors import ConflictError, DataError
from mrmodel.registry.decision import pointer_key, read_pointer
from mrmodel.retrain.attempts import AttemptLog
from mrmodel.storage import Store


class LedgerEntry(BaseModel):
    """The outcome of one delivery.

    Attributes:
        delivery, digest: a corrected delivery of the same name has another digest.
        outcome: ``quarantined``: its data were not accepted; ``promoted``, ``refused``: its data
            were accepted, and the model trained on them was promoted or refused.
        reasons: human-readable.
        branch: run branch that holds the data; None for a quarantined delivery.
        version: registered model that was trained on it.
        at: UTC, ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delivery: str
    digest: str
    outcome: Literal["quarantined", "promoted", "refused"]
    reasons: list[str]
    branch: str | None = None
    version: int | None = None
    at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat())


class Ledger:
    """Outcomes of deliveries for one registered model.

    Args:
        store: takes ``<model>/deliveries/<delivery>/<digest>.json``.
        model: name of the registered model.

    Attributes:
        attempts: with deliveries that have no outcome yet.
    """

    def __init__(self, store: Store, model: str) -> None:
        self.attempts = AttemptLog(store, model)
        self._store, self._model, self._folder = store, model, f"{model}/deliveries"

    def note(self, entry: LedgerEntry) -> LedgerEntry:
        """Write an outcome; returns the stored one, which is another process's if it was first.

        Raises:
            StorageError: the store cannot be written.
        """
        key = f"{self._folder}/{entry.delivery}/{entry.digest}.json"
        content = entry.model_dump_json(indent=2).encode()
        try:
            self._store.put(key, content, if_absent=True)
        except ConflictError:
            return self._read(key) or entry
        return entry

    def entries(self) -> list[LedgerEntry]:
        """All outcomes, oldest first.

        Raises:
            DataError: an object is not an outcome.
            StorageError: the store cannot be read.
        """
        read = [self._read(key) for key in self._store.keys(f"{self._folder}/")]
        return sorted((entry for entry in read if entry is not None), key=lambda entry: entry.at)

    def withdrawn(self) -> list[int]:
        """Versions of the model that were rolled back; their data need not be merged.

        Raises:
            DataError: the champion's pointer is damaged.
            StorageError: the store cannot be read.
        """
        key = pointer_key(self._model)
        found = self._store.get(key)
        if found is None:
            return []
        return read_pointer(found.content, f"{self._store.url}/{key}").withdrawn

    def _read(self, key: str) -> LedgerEntry | None:
        found = self._store.get(key)
        if found is None:
            return None
        try:
            return LedgerEntry.model_validate_json(found.content)
        except ValidationError as error:
            rule = f"holds no outcome of a delivery: {error.errors()[0]['msg']}"
            raise DataError(rule, file=f"{self._store.url}/{key}") from None
