"""Retrainings that began with a delivery and have not ended: those that failed, or were killed.

They are counted in the registry's store before the work begins, so that a killed process counts.
A delivery that fails again and again must not hold up the others: it is tried alone once more, and
then quarantined.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from mrmodel.errors import (
    ConfigError,
    ConflictError,
    DataError,
    DeliveryError,
    OrchestrationError,
    StorageError,
)
from mrmodel.storage import Store
from mrmodel.text import shortened

# Name and digest of a delivery.
Identity = tuple[str, str]
_LONGEST_REASON = 500
# Errors that no delivery is to blame for.
_NOT_THEIRS = (StorageError, OrchestrationError, DeliveryError, ConfigError, OSError)
# Writes that others may come before, one after another.
_TRIES = 20


class Attempts(BaseModel):
    """The attempts with one delivery that have not ended in a decision.

    Attributes:
        delivery, digest: as in `outcomes.LedgerEntry`.
        count: their number.
        reason: why the last of those that failed did; empty: all were killed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delivery: str
    digest: str
    count: int
    reason: str = ""

    @property
    def identity(self) -> Identity:
        """Of the delivery."""
        return self.delivery, self.digest


class _State(BaseModel):
    """The object in the store.

    Attributes:
        last_alone: whether the last attempt was with one delivery on purpose.
        unfinished: attempts with the deliveries without an outcome.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    last_alone: bool = False
    unfinished: list[Attempts] = []


class Turn(NamedTuple):
    """Deliveries that are tried together; `alone`: one that is tried alone on purpose."""

    deliveries: list[Identity]
    alone: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a retraining does with deliveries.

    Attributes:
        spent: those that failed too often, with the reason.
        turns: tried one after another until one brings data; the others wait.
        failed: those of the turns with which an attempt failed.
    """

    spent: dict[Identity, str]
    turns: list[Turn]
    failed: set[Identity]


class AttemptLog:
    """Counts attempts for one registered model.

    Args:
        store: takes ``<model>/attempts.json``.
        model: name of the registered model.
    """

    def __init__(self, store: Store, model: str) -> None:
        self._store, self._key = store, f"{model}/attempts.json"

    def plan(self, pending: Iterable[Identity], limit: int) -> Plan:
        """Divide deliveries by how often they failed.

        One that failed `limit` - 1 times gets the last attempt alone. Such attempts and those with
        all others take turns, so that neither waits for long.

        Args:
            pending: complete deliveries without an outcome.
            limit: attempts of each.

        Raises:
            DataError: the object in the store is damaged.
            StorageError: the store cannot be read.
        """
        state, _ = self._read()
        found = {one.identity: one for one in state.unfinished}
        spent: dict[Identity, str] = {}
        together: list[Identity] = []
        alone: list[Identity] = []
        for identity in pending:
            attempts = found.get(identity)
            if attempts is None or attempts.count < limit - 1:
                together.append(identity)
            elif attempts.count < limit:
                alone.append(identity)
            else:
                why = attempts.reason or "the process was killed"
                spent[identity] = f"{attempts.count} retrainings with it failed; the last: {why}"
        single = [Turn([one], alone=True) for one in alone]
        rest = [Turn(together, alone=False)] if together else []
        turns = rest + single if state.last_alone else single + rest
        return Plan(spent, turns, found.keys() & {*together, *alone})

    def begin(
        self, deliveries: Collection[Identity], pending: Collection[Identity], alone: bool
    ) -> None:
        """Count one attempt more for each delivery.

        Args:
            deliveries: that are tried now.
            pending: all without an outcome; attempts of others are forgotten.
            alone: whether one delivery is tried alone on purpose.
        """
        known = set(pending)

        def count(state: _State) -> _State:
            kept = {one.identity: one for one in state.unfinished if one.identity in known}
            for name, digest in deliveries:
                old = kept.get((name, digest))
                number, why = (1, "") if old is None else (old.count + 1, old.reason)
                kept[name, digest] = Attempts(
                    delivery=name, digest=digest, count=number, reason=why
                )
            return _State(last_alone=alone, unfinished=list(kept.values()))

        self._change(count)

    def withdraw(self, deliveries: Collection[Identity]) -> None:
        """Count one attempt less: it ended for a reason that no delivery is to blame for."""
        self._replace(
            deliveries,
            lambda one: one.model_copy(update={"count": one.count - 1}) if one.count > 1 else None,
        )

    def fail(self, deliveries: Collection[Identity], reason: str) -> None:
        """Note why an attempt failed."""
        why = shortened(" ".join(reason.split()), _LONGEST_REASON)
        self._replace(deliveries, lambda one: one.model_copy(update={"reason": why}))

    def end(self, deliveries: Collection[Identity]) -> None:
        """Forget deliveries that have an outcome."""
        self._replace(deliveries, lambda _: None)

    @contextmanager
    def running(self, deliveries: Collection[Identity]) -> Iterator[None]:
        """Note how an attempt that has begun fails, if it does, and raise all the same.

        Not counted: stores and repositories that cannot be reached, parameters, the machine, Ctrl-C
        and a cancelled run.
        """
        try:
            yield
        except Exception as error:
            self.note_failure(deliveries, str(error), error)
            raise
        except BaseException:
            self.withdraw(deliveries)
            raise

    def note_failure(
        self, deliveries: Collection[Identity], reason: str, error: object = None
    ) -> None:
        """Note that an attempt failed.

        Args:
            deliveries: that were tried.
            reason: why.
            error: that ended it, if there is one.
        """
        if isinstance(error, _NOT_THEIRS):
            self.withdraw(deliveries)
        else:
            self.fail(deliveries, reason)

    def _replace(
        self, deliveries: Collection[Identity], change: Callable[[Attempts], Attempts | None]
    ) -> None:
        chosen = set(deliveries)

        def replaced(state: _State) -> _State:
            rows = [change(one) if one.identity in chosen else one for one in state.unfinished]
            return state.model_copy(update={"unfinished": [one for one in rows if one is not None]})

        if chosen:
            self._change(replaced)

    def _change(self, change: Callable[[_State], _State]) -> None:
        """Write the changed state, as soon as no other process writes it at the same time.

        Raises:
            ConflictError: others always do.
            DataError: the object in the store is damaged.
            StorageError: the store cannot be read or written.
        """
        for left in reversed(range(_TRIES)):
            state, tag = self._read()
            changed = change(state)
            if changed == state:
                return
            content = changed.model_dump_json(indent=2).encode()
            try:
                self._store.put(self._key, content, if_absent=tag is None, if_match=tag)
            except ConflictError:
                if not left:
                    raise
            else:
                return

    def _read(self) -> tuple[_State, str | None]:
        found = self._store.get(self._key)
        if found is None:
            return _State(), None
        try:
            state = _State.model_validate_json(found.content)
        except ValidationError as error:
            rule = f"holds no attempts: {error.errors()[0]['msg']}"
            raise DataError(rule, file=f"{self._store.url}/{self._key}") from None
        return state, found.tag
