"""One Optuna study as a list of tickets: every trial that shall run waits in it beforehand.

A worker takes a waiting trial, which the storage gives to exactly one of them. So the number of
trials is exact however many workers there are, and a trial whose worker died becomes a new ticket.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mrmodel.errors import TuningError
from mrmodel.files import derive_seed, digest_of
from mrmodel.tracking.mlflow_client import flatten

log = logging.getLogger(__name__)

_FACTS = "mrmodel"
_FORMAT = 1
# What a trial knows of itself, beside what its objective says.
OWNER, ORIGIN, RETRY_OF, REASON = "owner", "origin", "retry_of", "reason"
# What a ticket brings along and its retries keep: where its values come from, and that no other
# values may take their place.
SOURCE, REQUIRED, BATCH_SIZE = "source", "required", "batch_size"
START, PAPER = "params.yaml", "paper"
_KILLED = "its worker was killed"
_KEPT = (SOURCE, REQUIRED, BATCH_SIZE)
# Parts of params.yaml that do not change what a trial gives.
_OUTSIDE = ("tracking", "orchestrate", "promotion", "retrain")
_EXTENT = ("study", "trials", "workers", "attempts", "confirm", "post_hoc")
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, slots=True)
class Facts:
    """What every worker of a study needs to know, wherever it runs.

    Attributes:
        objective: ``module:class`` of the `Objective`.
        config: the parameter tree that trials change.
        about: what only this objective needs.
        store: address of the store for what its trials hand on.
        title: for people.
        attempts: of a trial whose worker was killed.
    """

    objective: str
    config: dict[str, Any]
    about: dict[str, Any]
    store: str
    title: str
    attempts: int

    @property
    def digest(self) -> str:
        """Equal for searches for the same thing."""
        return digest_of(self._decisive)

    def differences(self, other: Facts) -> list[str]:
        """Dotted names of what makes two searches different ones."""
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
        label: what its starter calls it; no two are alike.
        machine, process: see `mrmodel.tracking.provenance.process_tags`.
    """

    label: str
    machine: str
    process: str


def searched(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a parameter tree a search is about; how far and with how many workers is not."""
    tree = {key: value for key, value in config.items() if key not in _OUTSIDE}
    tree["tune"] = {key: value for key, value in tree["tune"].items() if key not in _EXTENT}
    return tree


Lost = Callable[[Owner | None], bool]


class TrialQueue:
    """A study of a storage; opened anew by everybody who works on it.

    Args:
        storage: where it is.
        name: of the study.

    Raises:
        TuningError: there is no such study, or it is none of ours.
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
        """A new study that maximises so many figures, or the one of that name and purpose.

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
            # New, or of a process that was killed right after its first write.
            told = {"format": _FORMAT, "facts": asdict(facts), "seed": seed}
            study.set_user_attr(_FACTS, told)
        found = cls(storage, name)
        if found.facts.digest != facts.digest:
            raise TuningError(
                f"the study {name!r} was begun with other parameters or data, which do not "
                f"compare ({', '.join(found.facts.differences(facts)[:5])}); give `tune.study` "
                "another name"
            )
        return found

    @staticmethod
    def exists(storage: BaseStorage, name: str) -> bool:
        """Whether the storage has a study of that name."""
        return name in optuna.get_all_study_names(storage)

    def later(self) -> list[TrialQueue]:
        """The studies of the later steps of this search, by name."""
        names = sorted(optuna.get_all_study_names(self.storage))
        return [
            TrialQueue(self.storage, name) for name in names if name.startswith(f"{self.name}.")
        ]

    @property
    def directions(self) -> list[StudyDirection]:
        """One a figure."""
        return self._study.directions

    @property
    def handle(self) -> optuna.Study:
        """Optuna's own object, for its views."""
        return self._study

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in these states (none given: all), by number."""
        return self._study.get_trials(deepcopy=False, states=states or None)

    def done(self) -> list[FrozenTrial]:
        """Trials that have come to a result, given up ones included."""
        return self.trials(*_DONE)

    def live(self) -> int:
        """How many trials are done, run or wait: its extent."""
        return len(self.trials(*_DONE, TrialState.RUNNING, TrialState.WAITING))

    def best_value(self) -> float | None:
        """The highest value so far of the first figure, of trials that keep all limits."""
        found = [one.values[0] for one in self.trials(TrialState.COMPLETE) if is_feasible(one)]
        return max(found, default=None)

    def enqueue(self, values: Mapping[str, Any], **attributes: Any) -> None:
        """Add a ticket: `values` are given, the sampler draws the others."""
        self._study.enqueue_trial(dict(values), user_attrs=attributes)

    def fill(self, total: int) -> None:
        """Add tickets until `total` trials are done, run or wait."""
        for _ in range(total - self.live()):
            self.enqueue({})

    def claim(self, owner: Owner, pruner: BasePruner) -> optuna.Trial | None:
        """Take the first waiting trial; None: nothing waits.

        Its draws depend on the seed of the study, its number, and the results so far.
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
        """Fail the running trials whose worker is lost, and add a ticket for each.

        A sweep that is killed in between, and done again, neither loses nor doubles one: the ticket
        comes first and names the trial.

        Args:
            lost: whether a worker is; a trial whose worker was killed before it could say who it is
                has None.

        Returns:
            How many there were.

        Raises:
            TuningError: a trial that must run was killed too often.
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
        """End a trial as failed, and add a ticket with its values in its place.

        Args:
            number: of the trial.
            why: it failed.
            attributes: of the ticket, beside what it takes over.
        """
        trial = self.trials()[number]
        if number not in {other.user_attrs.get(RETRY_OF) for other in self.trials()}:
            told = trial.user_attrs
            kept = {name: told[name] for name in _KEPT if name in told}
            kept |= {ORIGIN: origin_of(trial), RETRY_OF: number, **attributes}
            # What it was given, and what it had drawn already.
            self.enqueue({**trial.system_attrs.get("fixed_params", {}), **trial.params}, **kept)
        self.tell(number, TrialState.FAIL, None, **{REASON: why})

    def _may_be_retried(self, trial: FrozenTrial) -> bool:
        origin, killed = origin_of(trial), 1
        for other in self.trials(TrialState.FAIL):
            killed += origin_of(other) == origin and other.user_attrs.get(REASON) == _KILLED
        log.warning("%s: trial %d was killed (%d times)", self.name, origin, killed)
        return killed < self.facts.attempts


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps the limits, e.g. of its latency."""
    return all(value <= 0.0 for value in trial.constraints.values())


def owner_of(trial: FrozenTrial) -> Owner | None:
    """The worker that has, or had, a trial."""
    told = trial.user_attrs.get(OWNER)
    return Owner(**told) if told else None


def origin_of(trial: FrozenTrial) -> int:
    """Number of the first attempt at a trial."""
    return int(trial.user_attrs.get(ORIGIN, trial.number))
