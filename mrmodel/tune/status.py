"""A search in lines of text, for the command line and for flows."""

from __future__ import annotations

from collections.abc import Iterator

from optuna.trial import TrialState

from mrmodel.errors import TuningError
from mrmodel.tune.study import TicketStudy, is_feasible, owner_of
from mrmodel.tune.verdict import Verdict, read_verdict
from mrmodel.tune.views import changes_of, sentence


def lines(study: TicketStudy) -> Iterator[str]:
    """How far each level is, what runs where, and the verdict where there is one."""
    for one in [study, *study.later()]:
        states = [trial.state.name.lower() for trial in one.trials()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        best = one.best_value()
        yield f"{one.name}: {counts}" + ("" if best is None else f"; best {best:.2f}")
        for trial in one.trials(TrialState.RUNNING):
            owner, step = owner_of(trial), trial.last_step
            where = f" on {owner.machine}" if owner else ""
            reached = (
                "" if step is None else f": epoch {step}, {trial.intermediate_values[step]:.2f}"
            )
            yield f"  trial {trial.number} runs{where}{reached}"
    verdict = _verdict(study)
    if verdict is not None:
        yield sentence(verdict)


def best_lines(study: TicketStudy, top: int) -> Iterator[str]:
    """The best trials, the confirmation, and what would be written into params.yaml."""
    complete = [one for one in study.trials(TrialState.COMPLETE) if is_feasible(one)]
    for trial in sorted(complete, key=lambda one: -one.values[0])[:top]:
        values = " ".join(f"{value:6.2f}" for value in trial.values)
        yield f"trial {trial.number:<4} {values}  {changes_of(trial)}"
    verdict = _verdict(study)
    if verdict is None:
        yield "not confirmed yet: the search has not come to its end"
        return
    for one in verdict.candidates:
        name = "starting point" if one.trial is None else f"trial {one.trial}"
        values = " ".join(f"{value:.2f}" for value in one.values)
        yield f"confirmed: {name:<15} {values}" + (f"  {one.gain}" if one.gain else "")
    yield sentence(verdict)
    for path, value in verdict.changes.items():
        yield f"  {path}: {value}"


def _verdict(study: TicketStudy) -> Verdict | None:
    try:
        return read_verdict(study)
    except TuningError:
        return None
