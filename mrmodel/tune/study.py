"""One Optuna study as a queue: every trial is enqueued before it runs.

A worker claims a waiting trial, which the storage gives to exactly one of them. So the number of
trials is exact for any number of workers, and a trial whose worker died is enqueued again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mrmodel.addresses import scheme_of
from mrmodel.config.base import flatten
from mrmodel.errors import TuningError
from mrmodel.files import derive_seed, digest_of

log = logging.getLogger(__name__)

_FACTS = "mrmodel"
_FORMAT = 1
# User attributes of a trial, beside those of its objective.
OWNER, ORIGIN, RETRY_OF, REASON = "owner", "origin", "retry_of", "reason"
# User attributes of an enqueued trial, kept by its retries: the origin of its values, and whether
# this trial must complete.
SOURCE, REQUIRED, BATCH_SIZE = "source", "required", "batch_size"
START, PAPER = "params.yaml", "paper"
_KILLED = "its worker was killed"
_KEPT = (SOURCE, REQUIRED, BATCH_SIZE)
# Sections of params.yaml that do not affect the result of a trial.
_OUTSIDE = ("tracking", "orchestrate", "promotion", "retrain")
_EXTENT = ("study", "trials", "workers", "attempts", "confirm", "post_hoc")
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, slots=True)
class Facts:
    """What every worker of a study needs to know, on any machine.

    Attributes:
        objective: ``module:class`` of the `Objective`.
        config: the parameter tree that trials change.
        about: data for this objective only.
        store: URL of the store to which its trials publish results.
        title: human-readable.
        attempts: maximum number for a trial whose worker is killed.
    """

    objective: str
    config: dict[str, Any]
    about: dict[str, Any]
    store: str
    title: str
    attempts: int

    @property
    def digest(self) -> str:
        """Equal for searches with the same purpose."""
        return digest_of(self._decisive)

    def differences(self, other: Facts) -> list[str]:
        """Dotted names of the settings in which two searches differ."""
        mine, theirs = flatten(self._decisive), flatten(other._decisive)
        return [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]

    @property
    def _decisive(self) -> dict[str, Any]:
        about = {"objective": self.objective, "about": self.about}
        return {**searched(self.config), **about}


@dataclass(frozen=True, slots=True)
class Owner:
    """The worker that runs a trial.

    Attributes:
        label: unique, set by the process that starts it.
        machine, process: see `mrmodel.tracking.provenance.process_tags`.
    """

    label: str
    machine: str
    process: str


def searched(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a parameter tree that defines a search, without number of trials and workers."""
    tree = {key: value for key, value in config.items() if key not in _OUTSIDE}
    tree["tune"] = {key: value for key, value in tree["tune"].items() if key not in _EXTENT}
    return tree


Lost = Callable[[Owner | None], bool]


class TrialQueue:
    """A study in a storage; every process opens its own.

    Args:
        storage: where it is.
        name: of the study.

    Raises:
        TuningError: there is no such study, or mrmodel did not create it.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self.storage, self.name = storage, name
        try:
            self._study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            raise TuningError(f"there is no study {name!r}; `mrmodel tune run` makes one") from None
        raw = self._study.user_attrs.get(_FACTS)
        if not isinstance(raw, dict) or raw.get("format") != _FORMAT:
            raise TuningError(f"the study {name!r} was not made by this version of mrmodel tune")
        self.facts = Facts(**raw["facts"])
        self.seed: int = raw["seed"]

    @classmethod
    def create(
        cls, storage: BaseStorage, name: str, facts: Facts, objectives: int, seed: int
    ) -> TrialQueue:
        """A new study that maximises `objectives` metrics, or the existing one with equal facts.

        Raises:
            TuningError: the name is taken by a study with other facts.
        """
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=["maximize"] * objectives,
            load_if_exists=True,
        )
        if not study.user_attrs and not study.get_trials(deepcopy=False):
            # New, or its process was killed right after the first write.
            content = {"format": _FORMAT, "facts": asdict(facts), "seed": seed}
            study.set_user_attr(_FACTS, content)
        found = cls(storage, name)
        if found.facts.digest != facts.digest:
            raise TuningError(
                f"the study {name!r} was begun with other parameters or data, which do not "
                f"compare ({', '.join(found.facts.differences(facts)[:5])}); give `tune.study` "
                "another name"
            )
        if found.facts.store != facts.store and not Path(found.facts.store).exists():
            found._move(facts.store)
        return found

    def _move(self, store: str) -> None:
        """Note another place of the results: a folder that is gone was moved with its project."""
        if scheme_of(self.facts.store):
            return
        self.facts = replace(self.facts, store=store)
        raw = {**self._study.user_attrs[_FACTS], "facts": asdict(self.facts)}
        self._study.set_user_attr(_FACTS, raw)

    @staticmethod
    def exists(storage: BaseStorage, name: str) -> bool:
        """Whether the storage has a study of that name."""
        return name in optuna.get_all_study_names(storage)

    def later(self) -> list[TrialQueue]:
        """The studies of later steps of this search, by name."""
        names = sorted(optuna.get_all_study_names(self.storage))
        return [
            TrialQueue(self.storage, name) for name in names if name.startswith(f"{self.name}.")
        ]

    @property
    def directions(self) -> list[StudyDirection]:
        """One per metric."""
        return self._study.directions

    @property
    def handle(self) -> optuna.Study:
        """Optuna's study object, for its plots."""
        return self._study

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in these states (none given: all), by number."""
        return self._study.get_trials(deepcopy=False, states=states or None)

    def done(self) -> list[FrozenTrial]:
        """Trials with a result, pruned ones included."""
        return self.trials(*_DONE)

    def live(self) -> int:
        """Number of trials that are done, running or waiting."""
        return len(self.trials(*_DONE, TrialState.RUNNING, TrialState.WAITING))

    def best_value(self) -> float | None:
        """The highest value so far of the first metric, of feasible trials."""
        found = [one.values[0] for one in self.trials(TrialState.COMPLETE) if is_feasible(one)]
        return max(found, default=None)

    def enqueue(self, values: Mapping[str, Any], **attributes: Any) -> None:
        """Enqueue a trial: `values` are fixed, the sampler draws the others."""
        self._study.enqueue_trial(dict(values), user_attrs=attributes)

    def fill(self, total: int) -> None:
        """Enqueue trials until `total` are done, running or waiting."""
        for _ in range(total - self.live()):
            self.enqueue({})

    def claim(self, owner: Owner, pruner: BasePruner) -> optuna.Trial | None:
        """Claim the first waiting trial; None: nothing waits.

        Its samples depend on the seed of the study, its number, and the results so far.
        """
        study_id = self.storage.get_study_id_from_name(self.name)
        for waiting in self.trials(TrialState.WAITING):
            number = waiting.number
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
            try:
                if not self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                    continue
            except UpdateFinishedTrialError:
                continue
            self.storage.set_trial_user_attr(trial_id, OWNER, asdict(owner))
            sampler = optuna.samplers.TPESampler(
                seed=derive_seed(self.seed, "trial", number) % 2**32, multivariate=True
            )
            study = optuna.load_study(
                study_name=self.name, storage=self.storage, sampler=sampler, pruner=pruner
            )
            return optuna.Trial(study, trial_id)
        return None

    def tell(
        self, number: int, state: TrialState, values: Sequence[float] | None, **attributes: Any
    ) -> None:
        """End a trial."""
        study_id = self.storage.get_study_id_from_name(self.name)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        for name, value in attributes.items():
            self.storage.set_trial_user_attr(trial_id, name, value)
        self._study.tell(number, values, state)

    def sweep(self, lost: Lost) -> int:
        """Fail the running trials whose worker is lost, and enqueue each again.

        Repeating a sweep that was killed neither loses nor duplicates a trial: the new one is
        enqueued first and names the old one.

        Args:
            lost: whether a worker is lost; None stands for a worker that was killed before it
                recorded its owner.

        Returns:
            Number of lost trials.

        Raises:
            TuningError: a required trial was killed too often.
        """
        running = [trial for trial in self.trials(TrialState.RUNNING) if lost(owner_of(trial))]
        for trial in running:
            if self._may_be_retried(trial):
                self.repeat(trial.number, _KILLED)
                continue
            self.tell(trial.number, TrialState.FAIL, None, **{REASON: _KILLED})
            if trial.user_attrs.get(REQUIRED):
                raise TuningError(
                    f"{self.name}: {trial.params} was killed {self.facts.attempts} times; is there "
                    "enough memory? Begin another study with a smaller train.batch_size"
                )
            self.fill(self.live() + 1)
        return len(running)

    def repeat(self, number: int, why: str, **attributes: Any) -> None:
        """Fail a trial, and enqueue one with its values in its place.

        Args:
            number: of the trial.
            why: reason of the failure.
            attributes: of the new trial, beside those it inherits.
        """
        trial = self.trials()[number]
        if number not in {other.user_attrs.get(RETRY_OF) for other in self.trials()}:
            content = trial.user_attrs
            kept = {name: content[name] for name in _KEPT if name in content}
            kept |= {ORIGIN: origin_of(trial), RETRY_OF: number, **attributes}
            # Its fixed values, and those it had sampled already.
            self.enqueue({**trial.system_attrs.get("fixed_params", {}), **trial.params}, **kept)
        self.tell(number, TrialState.FAIL, None, **{REASON: why})

    def _may_be_retried(self, trial: FrozenTrial) -> bool:
        origin, killed = origin_of(trial), 1
        for other in self.trials(TrialState.FAIL):
            killed += origin_of(other) == origin and other.user_attrs.get(REASON) == _KILLED
        log.warning("%s: trial %d was killed (%d times)", self.name, origin, killed)
        return killed < self.facts.attempts


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial satisfies the constraints, e.g. on its latency."""
    return all(value <= 0.0 for value in trial.constraints.values())


def owner_of(trial: FrozenTrial) -> Owner | None:
    """The worker that runs, or ran, a trial."""
    content = trial.user_attrs.get(OWNER)
    return Owner(**content) if content else None


def origin_of(trial: FrozenTrial) -> int:
    """Number of the first attempt at a trial."""
    return int(trial.user_attrs.get(ORIGIN, trial.number))
