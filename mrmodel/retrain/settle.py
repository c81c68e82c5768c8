"""What follows from the decision about a retrained model: outcomes, and a base that moves."""

from __future__ import annotations

import logging
import os

from mrmodel.errors import ConfigError
from mrmodel.orchestrate.places import Places
from mrmodel.orchestrate.workspace import fast_forward, workspace
from mrmodel.promotion.decisions import Decision
from mrmodel.promotion.registry import registry_store
from mrmodel.retrain.intake import Intake
from mrmodel.retrain.ledger import Entry, Ledger
from mrmodel.retrain.summary import Summary, summarize_decision
from mrmodel.storage import Store, open_store

log = logging.getLogger(__name__)

INCOMING_VARIABLE = "MRMODEL_INCOMING"


def open_incoming(places: Places) -> Store:
    """The store of the deliveries.

    Raises:
        ConfigError: ``MRMODEL_INCOMING`` does not name one.
    """
    url = os.environ.get(INCOMING_VARIABLE)
    if not url:
        rule = "is not set: where deliveries arrive, e.g. s3://bucket/incoming"
        raise ConfigError(INCOMING_VARIABLE, None, rule)
    return open_store(url, places.endpoint)


def open_ledger(places: Places, rev: str) -> Ledger:
    """The outcomes of deliveries for the model that a revision registers."""
    with workspace(places, rev) as space:
        name = space.config.promotion.registered_model
    return Ledger(registry_store(places.state), name)


def settle(
    places: Places, rev: str, ledger: Ledger, intake: Intake, branch: str, decision: Decision
) -> Summary:
    """Write down what became of the deliveries; after a promotion, their data become the base.

    A process that dies in here leaves either deliveries without an outcome, of which the next
    retraining makes the same model and settles them; or a branch that has not moved, which the next
    one moves first (`intake.take_in`).

    Args:
        places: where the repository is.
        rev: branch that the retraining started from, and that moves after a promotion.
        ledger: takes the outcomes; a conflict is none, its deliveries are looked at again.
        intake: the deliveries.
        branch: run branch with their data and the model trained on them.
        decision: about that model.
    """
    moved = ""
    if decision.kind in ("promote", "rollback"):
        _note(ledger, intake, branch, decision)
        left = fast_forward(places, rev, branch)
        moved = f"{left}; merge {branch} before the next retraining" if left else f"{rev} has moved"
    elif decision.kind == "refuse":
        _note(ledger, intake, branch, decision)
    return summarize_decision(decision, moved, intake.reports)


def _note(ledger: Ledger, intake: Intake, branch: str, decision: Decision) -> None:
    for report in intake.taken:
        entry = Entry(
            delivery=report.name,
            digest=report.digest,
            outcome="refused" if decision.kind == "refuse" else "promoted",
            reasons=[f"{gate.name}: {gate.detail}" for gate in decision.failed],
            branch=branch,
            version=decision.version,
        )
        found = ledger.note(entry)
        if found.outcome != entry.outcome:
            log.warning("delivery %s is %s already", report.name, found.outcome)
