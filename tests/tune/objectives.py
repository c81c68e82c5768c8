"""Objectives that need no model, for tests of what carries trials out."""

import os
import signal
import time
from pathlib import Path

from optuna.pruners import BasePruner, NopPruner

from mrmodel.errors import DataError, StoppedEarly, TrainingError
from mrmodel.tune.study import Facts
from mrmodel.tune.worker import ClaimedTrial, TrialResult


class Sleeping:
    """Sleeps for ``about.seconds``; its figure is highest at x = 0.3."""

    def __init__(self, facts: Facts) -> None:
        self.seconds: float = facts.about["seconds"]

    @property
    def pruner(self) -> BasePruner:
        return NopPruner()

    def __call__(self, claimed: ClaimedTrial) -> TrialResult:
        x = claimed.trial.suggest_float("x", 0.0, 1.0)
        time.sleep(self.seconds)
        return TrialResult([-((x - 0.3) ** 2)], {"origin_seen": claimed.origin})


class Moody(Sleeping):
    """Ends in another way where ``about`` says so of the trial's number."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.moods: dict[str, str] = facts.about["moods"]

    def __call__(self, claimed: ClaimedTrial) -> TrialResult:
        mood = self.moods.get(str(claimed.trial.number))
        x = claimed.trial.suggest_float("x", 0.0, 1.0)
        if mood == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if mood == "stopped":
            raise StoppedEarly("pruned at epoch 3")
        if mood == "diverged":
            raise TrainingError(f"step 7: loss = nan with x = {x:.3f}")
        if mood == "no data":
            raise DataError("has no rows", file=Path("train.jsonl"))
        return super().__call__(claimed)


class AlwaysKilled(Sleeping):
    """Kills its worker, whatever the values."""

    def __call__(self, claimed: ClaimedTrial) -> TrialResult:
        claimed.trial.suggest_float("x", 0.0, 1.0)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")
