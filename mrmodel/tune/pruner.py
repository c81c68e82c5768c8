"""When a trial is given up: Hyperband's word counts once the trial has stopped to gain."""

from __future__ import annotations

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial


class StalledPruner(BasePruner):
    """Prunes a trial that another pruner would prune and that has not gained for a while.

    Optuna's PatientPruner asks the inner pruner of stalled trials only, so that Hyperband would
    compare these among themselves; and it takes an even curve for a gain. Here every trial enters
    the comparison. Figures are maximised.

    Args:
        inner: says whether the others are better; asked at each report.
        patience: so many reports without a gain make a trial a stalled one; 0: every one is.
        min_delta: a gain is larger than this.
    """

    def __init__(self, inner: BasePruner, patience: int, min_delta: float) -> None:
        self.inner, self.patience, self.min_delta = inner, patience, min_delta

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to give `trial` up at its last report."""
        falls_behind = self.inner.prune(study, trial)
        return falls_behind and self._has_stalled(trial)

    def _has_stalled(self, trial: FrozenTrial) -> bool:
        if not self.patience:
            return True
        values = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        before, lately = values[: -self.patience], values[-self.patience :]
        return bool(before) and max(lately) <= max(before) + self.min_delta
