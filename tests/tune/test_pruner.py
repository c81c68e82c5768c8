"""Which curves are given up, and which are not."""

from collections.abc import Callable

import optuna
from optuna.pruners import HyperbandPruner
from optuna.trial import TrialState

from mrmodel.tune.objective import StalledPruner

EPOCHS = 20
Curve = Callable[[int], float]


def outcomes(*curves: Curve, patience: int = 2) -> list[TrialState]:
    """How trials with these curves end, one after the other."""
    inner = HyperbandPruner(min_resource=2, max_resource=EPOCHS, reduction_factor=3)
    pruner = StalledPruner(inner, patience, 0.0)
    study = optuna.create_study(study_name="curves", direction="maximize", pruner=pruner)
    for curve in curves:
        trial, state = study.ask(), TrialState.COMPLETE
        for epoch in range(1, EPOCHS + 1):
            trial.report(curve(epoch), epoch)
            if trial.should_prune():
                state = TrialState.PRUNED
                break
        study.tell(trial, None if state == TrialState.PRUNED else curve(EPOCHS), state)
    return [trial.state for trial in study.trials]


def good(epoch: int) -> float:
    return 30.0 + 0.5 * epoch


def flat(epoch: int) -> float:
    return 1.0


def slow(epoch: int) -> float:
    return 0.1 * epoch


def peak(epoch: int) -> float:
    """The best of all, early; what is told is the best so far."""
    return 50.0


def test_hopeless_curves_are_given_up() -> None:
    found = outcomes(*[good, flat] * 6)
    assert found[::2] == [TrialState.COMPLETE] * 6
    assert found[1::2].count(TrialState.PRUNED) >= 4


def test_the_best_trial_is_never_given_up_for_having_stalled() -> None:
    found = outcomes(*[good] * 4, peak, *[good] * 4, peak)
    assert found[4] == found[9] == TrialState.COMPLETE


def test_patience_lets_a_curve_rise_as_long_as_it_does() -> None:
    assert TrialState.PRUNED not in outcomes(*[good, slow] * 6)
    assert TrialState.PRUNED in outcomes(*[good, slow] * 6, patience=0)
