"""What is decided about a model, and the pointer to the one that serves.

A pointer holds the decision that made it. So the audit object of a promotion can be written from
the pointer alone, and is, when a process died between the two.
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


class Gate(Frozen):
    """One condition of a promotion.

    Attributes:
        name: of the gate.
        passed: None where there is nothing to judge, e.g. no champion to compare with.
        detail: what was found and what was asked for, in words.
        figures: the numbers behind it.
    """

    name: str
    passed: bool | None
    detail: str
    figures: dict[str, float] = Field(default_factory=dict)


class Decision(Frozen):
    """One decision about one version; its audit object is never written twice.

    Attributes:
        id: unique, and sorted by time.
        at: UTC, ISO 8601.
        kind: ``promote`` and ``rollback`` moved the pointer; ``refuse``: a gate failed;
            ``conflict``: the pointer moved while this version was judged.
        model: name of the registered model.
        version: which was decided about.
        before: champion until then.
        test_set: digest of the test set of `version`: its line of comparison.
        gates: all of them, none for a rollback.
        reason: why, in a person's words; of rollbacks and new lines.
        actor: who asked for it.
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
        """The gates that refuse it."""
        return [gate for gate in self.gates if gate.passed is False]


class Pointer(Frozen):
    """Which version serves: the truth, by which aliases and audit objects are set right.

    Attributes:
        sequence: counts the moves, so no two pointers are equal.
        version: the champion.
        previous: champion before, to which a rollback returns.
        champions: every version that ever was one, in the order of its first time.
        withdrawn: versions that were rolled back; the gates refuse them.
        decision: that led here.
    """

    format: Literal[1] = 1
    sequence: int
    version: int
    previous: int | None
    champions: list[int]
    withdrawn: list[int]
    decision: Decision


def decision_id(at: datetime) -> str:
    """A name that no other decision has, sorted by time."""
    return f"{at:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"


def now() -> datetime:
    """The present moment, UTC."""
    return datetime.now(UTC)


def actor() -> str:
    """The user of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container may run a user without a name.
        return "unknown"


def pointer_key(model: str) -> str:
    """Where the pointer of a registered model lies in its store."""
    return f"{model}/champion.json"


def read_pointer(content: bytes, where: str) -> Pointer:
    """Read champion.json; raises DataError where it is something else."""
    try:
        return Pointer.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"holds no pointer: {error.errors()[0]['msg']}", file=where) from None


def read_decision(content: bytes, where: str) -> Decision:
    """Read an audit object; raises DataError where it is something else."""
    try:
        return Decision.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"holds no decision: {error.errors()[0]['msg']}", file=where) from None
