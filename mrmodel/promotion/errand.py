"""``python -m mrmodel.promotion.errand ORDER.json``: register a revision's model, and decide.

It runs in a clone of the revision with the revision's own code, because that code becomes part of
the registered model. Data come from the DVC remote: the model, its evaluation, a few small files.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from dvc.repo import Repo

from mrmodel.config import load_config
from mrmodel.errors import AlreadyChampion, MrModelError
from mrmodel.files import write_json, write_text
from mrmodel.orchestrate.places import Places
from mrmodel.orchestrate.results import Handover
from mrmodel.orchestrate.transfer import Transfer
from mrmodel.pipeline.layout import Layout
from mrmodel.processes import die_with_parent
from mrmodel.progress import RichReporter
from mrmodel.promotion.candidate import needed_files
from mrmodel.promotion.decisions import Decision
from mrmodel.promotion.promote import decide
from mrmodel.promotion.register import register
from mrmodel.promotion.registry import open_registry

# Against the new champion, when a promotion of somebody else came in between.
_ROUNDS = 5


def register_and_decide(places: Places, model: str | None, kind: str, new_line: str) -> Decision:
    """Register the model of the clone in the current folder and let the gates judge it.

    Doing it twice is harmless: the same model is the same version, and of the champion the
    decision is returned that made it so.

    Args:
        places: where the data are.
        model: name below `models`; None: the first of `train.models`.
        kind: as of `register.register`.
        new_line: as of `promote.promote`.

    Raises:
        MrModelError: see `register.register`, `promote.decide`.
    """
    config = load_config(Path("params.yaml"))
    layout, name = Layout(config), model or config.train.models[0]
    transfer = Transfer(places, Handover(places.handover, places.endpoint))
    transfer.fetch(Repo(), [str(path) for path in needed_files(config, layout, name, kind)])
    registry = open_registry(config, layout)
    reporter = RichReporter(with_eta=False)
    version, _ = register(registry, config, layout, name, kind, reporter)
    for _ in range(_ROUNDS):
        pointer = registry.read().pointer
        if pointer is not None and pointer.version == version:
            registry.reconcile()
            return pointer.decision
        try:
            decision = decide(registry, config, version, new_line, reporter)
        except AlreadyChampion:  # Another process decided the same in this moment.
            continue
        if decision.kind != "conflict":
            break
    return decision


def main() -> int:
    """Carry out the order in the file named by the argument; the answer is written beside it."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    file = Path(sys.argv[1])
    order = json.loads(file.read_text(encoding="utf-8"))
    try:
        decision = register_and_decide(Places.from_environment(), **order)
    except MrModelError as error:
        write_json(file.with_name("error.json"), {"message": str(error)})
        return 1
    write_text(file.with_name("decision.json"), decision.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
