"""How a retraining ended, in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mrmodel.promotion.decisions import Decision
from mrmodel.retrain.report import Report

# Flow runs of retraining end in states of these names, for which automations can wait.
ENDS = ("Promoted", "Refused", "Conflict", "Quarantined", "Waiting", "Unchanged")
END_OF = {
    "promote": "Promoted",
    "rollback": "Promoted",  # what was decided about was the champion already, by a rollback
    "refuse": "Refused",
    "conflict": "Conflict",
}


@dataclass(frozen=True, slots=True)
class Summary:
    """How a retraining ended.

    Attributes:
        name: one of `ENDS`.
        text: in words, with the reasons.
    """

    name: str
    text: str


def summarize_intake(reports: Iterable[Report]) -> Summary:
    """The end of a retraining that had nothing to train on."""
    found = list(reports)
    states = {report.state for report in found}
    text = "\n".join(map(_line, found)) or "no new delivery"
    if "quarantined" in states:
        return Summary("Quarantined", text)
    return Summary("Waiting" if "waiting" in states else "Unchanged", text)


def summarize_decision(decision: Decision, moved: str, reports: Iterable[Report]) -> Summary:
    """The end of a retraining whose model was judged.

    Args:
        decision: about the model.
        moved: what became of the branch; empty: nothing.
        reports: of all deliveries that were looked at.
    """
    said = [f"{decision.model} version {decision.version} {explain(decision)}", moved]
    return Summary(END_OF[decision.kind], "\n".join(filter(None, [*said, *map(_line, reports)])))


def explain(decision: Decision) -> str:
    """What was decided and why: the gates that failed, or the gain."""
    if decision.kind == "conflict":
        return "was not decided about: other promotions were faster, again and again"
    if decision.kind == "rollback":
        return f"is champion already, by a rollback ({decision.reason})"
    gates = decision.failed or [gate for gate in decision.gates if gate.name == "better"]
    found = "; ".join(f"{gate.name}: {gate.detail}" for gate in gates)
    return f"is {'refused' if decision.failed else 'champion'} ({found})"


def _line(report: Report) -> str:
    reasons = f" ({'; '.join(report.reasons)})" if report.reasons else ""
    return f"delivery {report.name}: {report.state}{reasons}"
