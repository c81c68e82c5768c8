"""A registry with empty versions: pointer, aliases and audit objects are real, models are not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrmodel.registry.champion import ModelRegistry, PointerSnapshot
from mrmodel.registry.decision import Decision, Pointer, decision_id, timestamp
from mrmodel.registry.mlflow_versions import Versions
from mrmodel.registry.promote import promoted
from mrmodel.storage import open_store
from mrmodel.tracking.experiment import open_experiment


@dataclass(frozen=True, slots=True)
class Trial:
    """Where a registry is: folder of the MLflow database, address of the store, model name."""

    state: Path
    store: str
    name: str

    def open(self, wrap: Callable[[Any], Any] = lambda part: part) -> ModelRegistry:
        """The registry; `wrap` may put something around its client and its store."""
        client, experiment = open_experiment("trial", self.state)
        versions = Versions(wrap(client), experiment, self.name)
        return ModelRegistry(versions, wrap(open_store(self.store)))

    def add_versions(self, count: int) -> ModelRegistry:
        """The registry, with versions that have no files."""
        client, _ = open_experiment("trial", self.state)
        client.create_registered_model(self.name)
        for _ in range(count):
            client.create_model_version(self.name, self.state.resolve().as_uri())
        return self.open()


def promotion_of(version: int, seen: PointerSnapshot) -> Pointer:
    """The pointer that a promotion of `version` would write."""
    at = timestamp()
    decision = Decision(
        id=decision_id(at),
        at=at.isoformat(),
        kind="promote",
        model="moments",
        version=version,
        before=seen.pointer.version if seen.pointer else None,
        test_set="0" * 64,
        actor=str(os.getpid()),
    )
    return promoted(seen.pointer, decision)


def require_agreement(registry: ModelRegistry) -> Pointer:
    """One champion: pointer, aliases and the last move in the audit objects say the same."""
    pointer = registry.read().pointer
    assert pointer is not None
    aliases = registry.versions.aliases()
    assert aliases["champion"] == pointer.version
    assert aliases.get("previous") == pointer.previous
    moves = [one for one in registry.history() if one.kind in ("promote", "rollback")]
    assert moves[-1] == pointer.decision
    assert len(moves) == pointer.sequence
    return pointer


class Deadly:
    """Counts the writes of everything it is around; before number `fatal` the process dies."""

    WRITES = ("put", "set_registered_model_alias", "delete_registered_model_alias")

    def __init__(self, fatal: int) -> None:
        self.fatal, self.writes = fatal, 0

    def around(self, part: Any) -> Any:
        """`part`, with its writes counted."""
        return _Counted(part, self)

    def count(self) -> None:
        """One more write is about to be made."""
        if self.writes == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.writes += 1


class _Counted:
    def __init__(self, part: Any, deadly: Deadly) -> None:
        self._part, self._deadly = part, deadly

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if name not in Deadly.WRITES:
            return found

        def counted(*arguments: Any, **named: Any) -> Any:
            self._deadly.count()
            return found(*arguments, **named)

        return counted
