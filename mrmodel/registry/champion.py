"""The champion's pointer, moved by compare-and-set, with its aliases and audit objects.

MLflow's aliases have no compare-and-set: of several writers the last one wins. So the source of
truth is one object of a `Store`, written only if it is unchanged since it was read. Every move goes
pointer -> aliases -> audit object. If a process dies in between, `reconcile` completes the move,
because the pointer holds all it needs. A pointer is replaced only after its own move is complete,
so no audit object is ever lost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from mrmodel.config.schema import Config
from mrmodel.errors import ConflictError, DataError, RegistryError
from mrmodel.registry.decision import (
    MOVES,
    Decision,
    Pointer,
    pointer_key,
    read_decision,
    read_pointer,
    sequence_in,
)
from mrmodel.registry.mlflow_versions import Versions
from mrmodel.registry.pointer_store import STORE_VARIABLE, registry_store
from mrmodel.stages.paths import Paths
from mrmodel.stages.test_set import TestSetContents
from mrmodel.storage import Store
from mrmodel.tracking.experiment import open_for_user

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
# Maximum number of times aliases are set again because the pointer moved meanwhile.
_ALIAS_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class PointerSnapshot:
    """The pointer as it was read: None before the first promotion; `tag` guards the next write."""

    pointer: Pointer | None
    tag: str | None


class ModelRegistry:
    """One registered model: its versions in MLflow, its pointer and audit objects in a store.

    Args:
        versions: in MLflow.
        store: takes ``<model>/champion.json``, ``<model>/audit/`` and ``<model>/test_sets/``.
    """

    def __init__(self, versions: Versions, store: Store) -> None:
        self.versions, self.store, self.name = versions, store, versions.name

    def read(self) -> PointerSnapshot:
        """The current pointer."""
        found = self.store.get(pointer_key(self.name))
        if found is None:
            return PointerSnapshot(None, None)
        return PointerSnapshot(
            read_pointer(found.content, self._where(pointer_key(self.name))), found.tag
        )

    def move(self, seen: PointerSnapshot, pointer: Pointer) -> None:
        """Replace the pointer `seen` by `pointer`, then update aliases and audit objects.

        Raises:
            ConflictError: another process moved it since; nothing was changed.
            RegistryError: the pointer moved, but MLflow failed; `reconcile` finishes the move.
        """
        content = pointer.model_dump_json(indent=2).encode()
        if seen.pointer is not None:
            # Its writer may have died before writing the audit object; it is overwritten below.
            self.note(seen.pointer.decision)
        if seen.tag is None:
            self.store.put(pointer_key(self.name), content, if_absent=True)
        else:
            self.store.put(pointer_key(self.name), content, if_match=seen.tag)
        self.reconcile()

    def reconcile(self) -> list[str]:
        """Make aliases and audit objects agree with the pointer; returns the changes as text.

        Raises:
            RegistryError: MLflow is unreachable, or the pointer kept moving.
        """
        done: list[str] = []
        for _ in range(_ALIAS_ROUNDS):
            seen = self.read()
            done += self._set_aliases(seen.pointer)
            if seen.pointer is not None and self.note(seen.pointer.decision):
                done.append(f"wrote the audit object {seen.pointer.decision.id}")
            # The pointer did not move while the aliases were set.
            if self.read().tag == seen.tag:
                return done
        raise RegistryError(f"{self.name}: the pointer moved {_ALIAS_ROUNDS} times meanwhile")

    def note(self, decision: Decision) -> bool:
        """Write the audit object of a decision; False if it exists already."""
        content = decision.model_dump_json(indent=2).encode()
        key = f"{self.name}/audit/{decision.id}.json"
        try:
            self.store.put(key, content, if_absent=True)
        except ConflictError:
            found = self.store.get(key)
            if found is None or found.content != content:
                rule = (
                    "differs from the decision that the pointer holds; audit objects never change"
                )
                raise RegistryError(f"{self._where(key)}: {rule}") from None
            return False
        return True

    def history(self) -> list[Decision]:
        """All decisions, oldest first; moves of the pointer in their order, whatever the clock."""
        found = []
        for key in self.store.keys(f"{self.name}/audit/"):
            stored = self.store.get(key)
            if stored is not None:
                found.append(read_decision(stored.content, self._where(key)))
        last = self.read().pointer

        def order(move: Decision) -> tuple[bool, int, str]:
            is_last = last is not None and move.id == last.decision.id
            return is_last, sequence_in(move.id), move.id

        moves = iter(sorted((one for one in found if one.kind in MOVES), key=order))
        return [next(moves) if one.kind in MOVES else one for one in found]

    def keep(self, frozen: TestSetContents) -> None:
        """Store a test set under its digest; an existing one is not replaced."""
        content = json.dumps(frozen.as_json(), allow_nan=False).encode()
        try:
            self.store.put(self._set_key(frozen.digest), content, if_absent=True)
        except ConflictError:
            self.test_set(frozen.digest)

    def test_set(self, digest: str) -> TestSetContents:
        """The test set with this digest, verified.

        Raises:
            RegistryError: it is not there.
            DataError: it was changed.
        """
        key = self._set_key(digest)
        found = self.store.get(key)
        if found is None:
            raise RegistryError(f"{self._where(key)}: there is no such test set")
        frozen = TestSetContents.from_json(found.content.decode(), self._where(key))
        if frozen.digest != digest:
            raise DataError(f"has digest {frozen.digest}", file=self._where(key))
        return frozen

    def _set_aliases(self, pointer: Pointer | None) -> list[str]:
        """Set aliases that differ; the challenger is the newest version, unless once champion."""
        newest = max((int(version.version) for version in self.versions.all()), default=None)
        champions = pointer.champions if pointer else []
        wanted = {
            CHAMPION: pointer.version if pointer else None,
            PREVIOUS: pointer.previous if pointer else None,
            CHALLENGER: None if newest in champions else newest,
        }
        found, done = self.versions.aliases(), []
        if pointer is None and CHAMPION in found:
            # The pointer is written before the alias, so this is another registry's alias.
            raise RegistryError(
                f"{self._where(pointer_key(self.name))}: there is no pointer, but in MLflow "
                f"version {found[CHAMPION]} is champion; does {STORE_VARIABLE} name another store?"
            )
        for alias, version in wanted.items():
            if found.get(alias) != version:
                self.versions.set_alias(alias, version)
                done.append(f"alias {alias}: {found.get(alias)} -> {version}")
        return done

    def _set_key(self, digest: str) -> str:
        return f"{self.name}/test_sets/{digest}.json"

    def _where(self, key: str) -> str:
        return f"{self.store.url}/{key}"


def open_registry(config: Config, paths: Paths) -> ModelRegistry:
    """The registry configured in the environment.

    Versions are in the MLflow of ``MLFLOW_TRACKING_URI``, pointer and audit objects in the store of
    ``MRMODEL_REGISTRY``; without them both are in ``.mrmodel``.
    """
    client, experiment = open_for_user(config.tracking.experiment, paths.state)
    versions = Versions(client, experiment, config.promotion.registered_model)
    return ModelRegistry(versions, registry_store(paths.state))
