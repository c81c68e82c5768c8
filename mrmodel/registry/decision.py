"""Decisions about a model, and the pointer to the champion.

A pointer holds the decision that made it. So if a process dies between writing the two, the audit
object of a promotion can be written from the pointer alone.
"""

from __future__ import annotations

import getpass
import secrets
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, ValidationError

from mrmodel.errors import DataError
from mrmodel.registry.model_record import Frozen

Kind = Literal["promote", "rollback", "refuse", "conflict"]
# Those that moved the pointer.
MOVES: tuple[Kind, ...] = ("promote", "rollback")


class Gate(Frozen):
    """One condition of a promotion.

    Attributes:
        name: of the gate.
        passed: None if the gate does not apply, e.g. no champion to compare with.
        detail: measured and required values, as text.
        figures: the numbers behind it.
    """

    name: str
    passed: bool | None
    detail: str
    figures: dict[str, float] = Field(default_factory=dict)


class Decision(Frozen):
    """One decision about one version; its audit object is never overwritten.

    Attributes:
        id: unique, and sorted by time; see `decision_id`.
        at: UTC, ISO 8601.
        kind: ``promote`` and ``rollback`` moved the pointer; ``refuse``: a gate failed;
            ``conflict``: the pointer moved while this version was evaluated.
        model: name of the registered model.
        version: the version that the decision is about.
        before: champion until then.
        test_set: digest of the test set of `version`; only versions with equal ones are compared.
        gates: all of them, none for a rollback.
        reason: written by a person; for rollbacks and baseline resets.
        actor: user who requested it.
    """

    id: str
    at: str
    kind: Kind
    model: str
    version: int
    before: int | None
    test_set: str
    gates: list[Gate] = Field(default_factory=list)
    reason: str = ""
    actor: str

    @property
    def failed(self) -> list[Gate]:
        """The gates that failed."""
        return [gate for gate in self.gates if gate.passed is False]


class Pointer(Frozen):
    """Which version is champion: the source of truth for aliases and audit objects.

    Attributes:
        sequence: number of moves, so no two pointers are equal.
        version: the champion.
        previous: champion before, to which a rollback returns.
        champions: every version that was ever champion, in order of its first promotion.
        withdrawn: versions that were rolled back; the gates reject them.
        decision: that made this pointer.
    """

    format: Literal[1] = 1
    sequence: int
    version: int
    previous: int | None
    champions: list[int]
    withdrawn: list[int]
    decision: Decision


def decision_id(at: datetime, sequence: int = 0) -> str:
    """A unique id, sorted by time.

    Args:
        at: the time.
        sequence: `Pointer.sequence` of the move that the decision may become, because a clock may
            be set back.
    """
    return f"{at:%Y%m%dT%H%M%S.%fZ}-{sequence}-{secrets.token_hex(4)}"


def sequence_in(name: str) -> int:
    """The number of a move in the id of its decision; 0 in ids of earlier versions."""
    parts = name.split("-")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else 0


def timestamp() -> datetime:
    """The current time, UTC."""
    return datetime.now(UTC)


def actor() -> str:
    """The user of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container may run a user without a name.
        return "unknown"


def pointer_key(model: str) -> str:
    """Key of a registered model's pointer in its store."""
    return f"{model}/champion.json"


def read_pointer(content: bytes, where: str) -> Pointer:
    """Read champion.json; raises DataError if it is invalid."""
    try:
        return Pointer.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"holds no pointer: {error.errors()[0]['msg']}", file=where) from None


def read_decision(content: bytes, where: str) -> Decision:
    """Read an audit object; raises DataError if it is invalid."""
    try:
        return Decision.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"holds no decision: {error.errors()[0]['msg']}", file=where) from None
