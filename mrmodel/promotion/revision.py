"""A revision's model, registered and judged from outside of its clone."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mrmodel.errors import OrchestrationError, RegistryError
from mrmodel.files import write_json
from mrmodel.markdown import table
from mrmodel.orchestrate.clone import fresh_clone
from mrmodel.orchestrate.module import run_module
from mrmodel.orchestrate.places import Places
from mrmodel.promotion.decisions import Decision, read_decision
from mrmodel.redact import hide_secrets, secrets_of

_MODULE = "mrmodel.promotion.errand"


def promote_revision(
    places: Places,
    rev: str,
    say: Callable[[str], None],
    model: str | None = None,
    kind: str = "finetuned",
    new_line: str = "",
) -> Decision:
    """Register the model that a revision made, and let the gates judge it; see `errand`.

    Args:
        places: where repository and data are.
        rev: e.g. a run branch.
        say: told of every line of the process.
        model: name below `models`; None: the first of `train.models`.
        kind: as of `register.register`.
        new_line: as of `promote.promote`.

    Raises:
        OrchestrationError: the revision or its data cannot be had.
        RegistryError: the model cannot be registered or judged.
    """
    order = {"model": model, "kind": kind, "new_line": new_line}
    with tempfile.TemporaryDirectory(prefix="mrmodel-") as name, fresh_clone(places, rev, {}) as to:
        beside = Path(name)
        write_json(beside / "order.json", order)
        ended = run_module(to, [_MODULE, str(beside / "order.json")], say)
        answer, error = beside / "decision.json", beside / "error.json"
        if answer.exists():
            return read_decision(answer.read_bytes(), _MODULE)
        if error.exists():
            message = json.loads(error.read_text(encoding="utf-8"))["message"]
            raise RegistryError(hide_secrets(message, secrets_of(os.environ)))
    said = [f"{_MODULE} at {rev} ended without an answer:", *ended.last]
    raise OrchestrationError("\n  ".join(said))


def decision_markdown(decision: Decision) -> str:
    """A decision for people: what was decided, and each gate with its figures."""
    before = "none" if decision.before is None else f"version {decision.before}"
    words = {True: "passed", False: "**failed**", None: "nothing to judge"}
    gates = [(gate.name, words[gate.passed], gate.detail) for gate in decision.gates]
    lines = [
        f"**{decision.model} version {decision.version}: {decision.kind}**",
        "",
        f"Champion before: {before}. Test set {decision.test_set[:12]}.",
        f"Audit object {decision.id}.",
        "",
        table(("gate", "verdict", "found"), gates),
    ]
    return "\n".join(lines)
