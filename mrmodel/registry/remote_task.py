"""Registers and evaluates a revision's model, in a clone of that revision.

``python -m mrmodel.registry.remote_task ORDER.json`` runs in the clone with the clone's own code,
because that code becomes part of the registered model. Data come from the DVC remote: the model,
its evaluation, a few small files.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from dvc.repo import Repo

from mrmodel.config.schema import load_config
from mrmodel.errors import AlreadyChampion, MrModelError, OrchestrationError, RegistryError
from mrmodel.files import write_json, write_text
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.dvc_transfer import Transfer
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import ResultStore
from mrmodel.processes import die_with_parent, hide_secrets, run_python, secrets_of
from mrmodel.progress import RichReporter
from mrmodel.registry.candidate import needed_files
from mrmodel.registry.champion import open_registry
from mrmodel.registry.decision import Decision, read_decision
from mrmodel.registry.promote import decide, register
from mrmodel.stages.paths import Paths
from mrmodel.text import table

# Maximum retries against a new champion, if another promotion came in between.
_ROUNDS = 5


def register_and_decide(
    places: RuntimeEnvironment, model: str | None, kind: str, reset_baseline: str
) -> Decision:
    """Register the model of the clone in the current folder and evaluate the gates.

    It is idempotent: the same model is the same version, and for the champion the decision that
    promoted it is returned.

    Args:
        places: where the data are.
        model: name below `models`; None: the first of `train.models`.
        kind: as of `register.register`.
        reset_baseline: as of `promote.promote`.

    Raises:
        MrModelError: see `register.register`, `promote.decide`.
    """
    config = load_config(Path("params.yaml"))
    paths, name = Paths(config), model or config.train.models[0]
    transfer = Transfer(places, ResultStore(places.result_store, places.endpoint))
    transfer.fetch(Repo(), [str(path) for path in needed_files(config, paths, name, kind)])
    registry = open_registry(config, paths)
    reporter = RichReporter(with_eta=False)
    version, _ = register(registry, config, paths, name, kind, reporter)
    for _ in range(_ROUNDS):
        pointer = registry.read().pointer
        if pointer is not None and pointer.version == version:
            registry.reconcile()
            return pointer.decision
        try:
            decision = decide(registry, config, version, reset_baseline, reporter)
        except AlreadyChampion:  # Another process promoted it at the same time.
            continue
        if decision.kind != "conflict":
            break
    return decision


def main() -> int:
    """Run the request in the file given as argument; the result is written next to it."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # A command gives up sooner; here hours of training may come before. MLflow's own number.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    file = Path(sys.argv[1])
    order = json.loads(file.read_text(encoding="utf-8"))
    try:
        decision = register_and_decide(RuntimeEnvironment.from_environment(), **order)
    except MrModelError as error:
        write_json(file.with_name("error.json"), {"message": str(error)})
        return 1
    write_text(file.with_name("decision.json"), decision.model_dump_json())
    return 0


_MODULE = "mrmodel.registry.remote_task"


def promote_revision(
    places: RuntimeEnvironment,
    rev: str,
    say: Callable[[str], None],
    model: str | None = None,
    kind: str = "finetuned",
    reset_baseline: str = "",
) -> Decision:
    """Register the model that a revision made and evaluate the gates; see `main`.

    Args:
        places: where repository and data are.
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
    with tempfile.TemporaryDirectory(prefix="mrmodel-") as name, fresh_clone(places, rev, {}) as to:
        beside = Path(name)
        write_json(beside / "order.json", order)
        ended = run_python(_MODULE, str(beside / "order.json"), folder=to, on_line=say)
        answer, error = beside / "decision.json", beside / "error.json"
        if answer.exists():
            return read_decision(answer.read_bytes(), _MODULE)
        if error.exists():
            message = json.loads(error.read_text(encoding="utf-8"))["message"]
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


if __name__ == "__main__":
    sys.exit(main())
