"""Registers and evaluates a revision's model, in a clone of that revision.

``python -m mrmodel.registry.remote_task ORDER.json`` runs in the clone with the clone's own code,
because that code becomes part of the registered model. Data come from the DVC remote: the model,
its evaluation, a few small files.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from dvc.repo import Repo

from mrmodel.config.schema import load_config
from mrmodel.errors import AlreadyChampion, MrModelError
from mrmodel.files import read_json, write_json, write_text
from mrmodel.orchestrate.dvc_transfer import Transfer
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import ResultStore
from mrmodel.processes import die_with_parent
from mrmodel.progress import RichReporter
from mrmodel.registry.candidate import needed_files
from mrmodel.registry.champion import open_registry
from mrmodel.registry.decision import Decision
from mrmodel.registry.promote import decide, register
from mrmodel.stages.paths import Paths

# Maximum retries against a new champion, if another promotion came in between.
_ROUNDS = 5


def register_and_decide(
    environment: RuntimeEnvironment, model: str | None, kind: str, reset_baseline: str
) -> Decision:
    """Register the model of the clone in the current folder and evaluate the gates.

    It is idempotent: the same model is the same version, and for the champion the decision that
    promoted it is returned.

    Args:
        environment: where the data are.
        model: name below `models`; None: the first of `train.models`.
        kind: as of `register.register`.
        reset_baseline: as of `promote.promote`.

    Raises:
        MrModelError: see `register.register`, `promote.decide`.
    """
    config = load_config(Path("params.yaml"))
    paths, name = Paths(config), model or config.train.models[0]
    transfer = Transfer(environment, ResultStore(environment.result_store, environment.endpoint))
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
    order = read_json(file)
    try:
        decision = register_and_decide(RuntimeEnvironment.from_environment(), **order)
    except MrModelError as error:
        write_json(file.with_name("error.json"), {"message": str(error)})
        return 1
    write_text(file.with_name("decision.json"), decision.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
