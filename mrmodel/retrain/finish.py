"""Acts on the decision about a retrained model: records outcomes, moves the base branch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrmodel.errors import ConfigError
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.run_branch import fast_forward, workspace
from mrmodel.registry.decision import Decision
from mrmodel.registry.pointer_store import registry_store
from mrmodel.retrain.outcomes import Ledger, LedgerEntry
from mrmodel.retrain.report import DeliveryReport
from mrmodel.storage import Store, open_store

if TYPE_CHECKING:
    from mrmodel.retrain.ingest import IngestResult

# Names of the final states of retraining flow runs, on which automations can be triggered.
ENDS = ("Promoted", "Refused", "Conflict", "Quarantined", "Waiting", "Unchanged")
END_OF = {
    "promote": "Promoted",
    "rollback": "Promoted",  # the version was already champion, by a rollback
    "refuse": "Refused",
    "conflict": "Conflict",
}


@dataclass(frozen=True, slots=True)
class RetrainingSummary:
    """How a retraining ended.

    Attributes:
        name: one of `ENDS`.
        text: human-readable, with the reasons.
    """

    name: str
    text: str


def summarize_ingestion(reports: Iterable[DeliveryReport]) -> RetrainingSummary:
    """Summary of a retraining that had nothing to train on."""
    found = list(reports)
    states = {report.state for report in found}
    text = "\n".join(map(_line, found)) or "no new delivery"
    if "quarantined" in states:
        return RetrainingSummary("Quarantined", text)
    return RetrainingSummary("Waiting" if "waiting" in states else "Unchanged", text)


def summarize_decision(
    decision: Decision, moved: str, reports: Iterable[DeliveryReport]
) -> RetrainingSummary:
    """Summary of a retraining whose model was evaluated.

    Args:
        decision: about the model.
        moved: how the base branch was moved; empty: it was not.
        reports: of all deliveries that were checked.
    """
    said = [f"{decision.model} version {decision.version} {explain(decision)}", moved]
    return RetrainingSummary(
        END_OF[decision.kind], "\n".join(filter(None, [*said, *map(_line, reports)]))
    )


def explain(decision: Decision) -> str:
    """The decision and its reasons: the gates that failed, or the gain."""
    if decision.kind == "conflict":
        return "was not decided about: other promotions were faster, again and again"
    if decision.kind == "rollback":
        return f"is champion already, by a rollback ({decision.reason})"
    gates = decision.failed or [gate for gate in decision.gates if gate.name == "better"]
    found = "; ".join(f"{gate.name}: {gate.detail}" for gate in gates)
    return f"is {'refused' if decision.failed else 'champion'} ({found})"


def _line(report: DeliveryReport) -> str:
    reasons = f" ({'; '.join(report.reasons)})" if report.reasons else ""
    return f"delivery {report.name}: {report.state}{reasons}"


log = logging.getLogger(__name__)

INCOMING_VARIABLE = "MRMODEL_INCOMING"


def open_incoming(environment: RuntimeEnvironment) -> Store:
    """The store of the deliveries.

    Raises:
        ConfigError: ``MRMODEL_INCOMING`` does not name one.
    """
    url = os.environ.get(INCOMING_VARIABLE)
    if not url:
        rule = "is not set: where deliveries arrive, e.g. s3://bucket/incoming"
        raise ConfigError(INCOMING_VARIABLE, None, rule)
    return open_store(url, environment.endpoint, variable=INCOMING_VARIABLE)


def open_ledger(environment: RuntimeEnvironment, rev: str) -> Ledger:
    """The outcomes of deliveries for the model that a revision registers."""
    with workspace(environment, rev) as space:
        name = space.config.promotion.registered_model
    return Ledger(registry_store(environment.state), name)


def finish(
    environment: RuntimeEnvironment,
    rev: str,
    ledger: Ledger,
    ingested: IngestResult,
    branch: str,
    decision: Decision,
) -> RetrainingSummary:
    """Record the outcomes of the deliveries; after a promotion, merge their data into the base.

    If the process dies in here, either deliveries have no outcome, and the next retraining makes
    the same model and finishes them; or the base branch has not moved, and the next retraining
    moves it first (`ingest.ingest`).

    Args:
        environment: where the repository is.
        rev: branch from which the retraining started; it moves after a promotion.
        ledger: takes the outcomes, and forgets the attempt; a conflict is no outcome, so its
            deliveries are retried.
        ingested: the deliveries.
        branch: run branch with their data and the model trained on them.
        decision: about that model.
    """
    moved = ""
    if decision.kind in ("promote", "rollback"):
        _note(ledger, ingested, branch, decision)
        left = fast_forward(environment, rev, branch)
        moved = f"{left}; merge {branch} before the next retraining" if left else f"{rev} has moved"
    elif decision.kind == "refuse":
        _note(ledger, ingested, branch, decision)
    if decision.kind == "conflict":
        ledger.attempts.withdraw(ingested.identities)
    else:
        ledger.attempts.end(ingested.identities)
    return summarize_decision(decision, moved, ingested.reports)


def _note(ledger: Ledger, ingested: IngestResult, branch: str, decision: Decision) -> None:
    for report in ingested.taken:
        entry = LedgerEntry(
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
