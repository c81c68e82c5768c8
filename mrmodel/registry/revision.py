"""Registers and evaluates a revision's model through a process in a clone of that revision.

What runs there is `mrmodel.registry.remote_task`. Nothing here needs torch or MLflow, so a flow
that calls it starts in less than half of the time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mrmodel.errors import OrchestrationError, RegistryError
from mrmodel.files import read_json, write_json
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.processes import hide_secrets, run_python, secrets_of
from mrmodel.registry.decision import Decision, read_decision
from mrmodel.text import table

_MODULE = "mrmodel.registry.remote_task"


def promote_revision(
    environment: RuntimeEnvironment,
    rev: str,
    say: Callable[[str], None],
    model: str | None = None,
    kind: str = "finetuned",
    reset_baseline: str = "",
) -> Decision:
    """Register the model that a revision made and evaluate the gates; see `remote_task`.

    Args:
        environment: where repository and data are.
        rev: e.g. a run branch.
        say: called with every line that the process prints.
        model: name below `models`; None: the first of `train.models`.
        kind: as of `register.register`.
        reset_baseline: as of `promote.promote`.

    Raises:
        OrchestrationError: the revision or its data are not available.
        RegistryError: the model cannot be registered or evaluated.
    """
    order = {"model": model, "kind": kind, "reset_baseline": reset_baseline}
    with (
        tempfile.TemporaryDirectory(prefix="mrmodel-") as name,
        fresh_clone(environment, rev, {}) as to,
    ):
        beside = Path(name)
        write_json(beside / "order.json", order)
        ended = run_python(_MODULE, str(beside / "order.json"), folder=to, on_line=say)
        answer, error = beside / "decision.json", beside / "error.json"
        if answer.exists():
            return read_decision(answer.read_bytes(), _MODULE)
        if error.exists():
            message = read_json(error)["message"]
            raise RegistryError(hide_secrets(message, secrets_of(os.environ)))
    said = [f"{_MODULE} at {rev} ended without a decision:", *ended.last]
    raise OrchestrationError("\n  ".join(said))


def decision_markdown(decision: Decision) -> str:
    """A decision as Markdown, with each gate and its values."""
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
