"""``python -m mrmodel.tune.worker STUDY --owner LABEL``: run trials of a study until none waits.

The current folder is a repository with the training data. With ``--fetch`` it is a clone of the
tuned revision, and the worker first pulls what its trials read. Whatever starts such a process has
the trial of a killed worker tried again (`mrmodel.tune.worker_pool`).
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from mrmodel.config.schema import parse_config
from mrmodel.errors import ConfigError, MrModelError, StoppedEarly, TrainingError
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import ResultStore
from mrmodel.processes import die_with_parent
from mrmodel.progress import announce
from mrmodel.stages.paths import Paths
from mrmodel.tracking.event_log import RunSpec
from mrmodel.tracking.provenance import process_tags
from mrmodel.tracking.run import PARENT, open_run
from mrmodel.tune.storage import open_storage, storage_address
from mrmodel.tune.study import (
    BATCH_SIZE,
    REASON,
    SOURCE,
    Facts,
    Owner,
    TrialQueue,
    origin_of,
)

log = logging.getLogger(__name__)

# Each tells of every credential it looks for, and of every file that it moves.
_TALKATIVE = ("dvc", "dvc_objects", "dvc_data", "aiobotocore", "botocore", "s3fs")


@dataclass(frozen=True, slots=True)
class ClaimedTrial:
    """A trial as its objective sees it.

    Attributes:
        trial: asks for values, takes intermediate figures.
        study: name of the study.
        origin: number of the first attempt; a retry goes on from what that one has left.
        source: where its values come from, when they are given.
        batch: samples at once, where an earlier attempt had too little memory.
    """

    trial: optuna.Trial
    study: str
    origin: int
    source: str | None = None
    batch: int | None = None


class SmallerBatch(Exception):  # No error: the trial is repeated.
    """A trial needs more memory than there is; `batch` is the next size to try."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        super().__init__(f"out of memory; again with a batch of {batch}")


@dataclass(frozen=True, slots=True)
class Result:
    """How a trial ended: the figures that are maximised, and what else is worth knowing."""

    values: Sequence[float]
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Objective(Protocol):
    """What the trials of a study do."""

    def __init__(self, facts: Facts) -> None: ...

    @staticmethod
    def needs(facts: Facts) -> list[Path]:
        """What of DVC's outputs its trials read, files or folders."""

    @property
    def pruner(self) -> BasePruner:
        """When to give a trial up."""

    def __call__(self, claimed: ClaimedTrial) -> Result:
        """Run a trial.

        Raises:
            StoppedEarly: it is given up.
            SmallerBatch: it needs a smaller one.
            TrainingError, ConfigError: these values cannot work.
            MrModelError: no trial could work; the worker ends with it.
        """


def objective_of(facts: Facts) -> type[Objective]:
    """The class of a study's objective."""
    module, _, name = facts.objective.partition(":")
    found: type[Objective] = getattr(importlib.import_module(module), name)
    return found


def load_objective(facts: Facts) -> Objective:
    """The objective of a study, ready for its trials."""
    return objective_of(facts)(facts)


def work(study: TrialQueue, owner: Owner) -> int:
    """Take trials until none waits; returns how many.

    Raises:
        MrModelError: a trial failed in a way that every other would too; it is left running, for
            the sweep of whoever started the worker.
    """
    objective, count = load_objective(study.facts), 0
    while (trial := study.claim(owner, objective.pruner)) is not None:
        announce("step", name=f"{study.name} trial {trial.number}")
        run_trial(study, objective, trial)
        count += 1
    return count


def run_trial(study: TrialQueue, objective: Objective, trial: optuna.Trial) -> None:
    """Run a claimed trial and tell how it ended."""
    frozen = study.trials()[trial.number]
    told = frozen.user_attrs
    claimed = ClaimedTrial(
        trial, study.name, origin_of(frozen), told.get(SOURCE), told.get(BATCH_SIZE)
    )
    try:
        result = objective(claimed)
    except SmallerBatch as again:
        log.warning("%s: trial %d: %s", study.name, trial.number, again)
        study.repeat(trial.number, str(again), **{BATCH_SIZE: again.batch})
        return
    except (StoppedEarly, TrainingError, ConfigError) as error:
        log.info("%s: trial %d given up: %s", study.name, trial.number, error)
        study.tell(trial.number, TrialState.PRUNED, None, **{REASON: str(error)})
        return
    attributes = dict(result.attributes)
    study.tell(trial.number, TrialState.COMPLETE, result.values, **attributes)


def recorded_work(study: TrialQueue, owner: Owner) -> int:
    """`work`, with each trial as a run below the run of the search in MLflow."""
    facts = study.facts
    config = parse_config(facts.config)
    spec = RunSpec(
        experiment=config.tracking.experiment,
        state=str(Paths(config).state.resolve()),
        name="tune",
        title=facts.title,
        code=str(Path.cwd()),
        join=os.environ.get(PARENT),
    )
    tracking = config.tracking
    if spec.join is None:  # The search itself has no record, so its trials have none.
        tracking = tracking.model_copy(update={"enabled": False})
    with open_run(tracking, spec):
        return work(study, owner)


def fetch_data(study: TrialQueue) -> None:
    """Bring what the trials of a study read into the current clone.

    Raises:
        OrchestrationError: something is not there.
    """
    from dvc.repo import Repo  # A second and more; workers beside their data do without.

    from mrmodel.orchestrate.dvc_transfer import Transfer

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    places = RuntimeEnvironment.from_environment()
    paths = [str(path) for path in objective_of(study.facts).needs(study.facts)]
    log.info("%s: pull %s", study.name, " ".join(paths))
    Transfer(places, ResultStore(places.handover, places.endpoint)).fetch(Repo(), paths)


def main() -> int:
    """Work on the study named by the argument; exit code 1 and one line on a mistake."""
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--owner", required=True)
    parser.add_argument("--fetch", action="store_true", help="pull what the trials read first")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        storage = open_storage(storage_address(Path(".mrmodel")))
        owner = Owner(options.owner, **process_tags())
        study = TrialQueue(storage, options.study)
        if options.fetch:
            fetch_data(study)
        count = recorded_work(study, owner)
    except MrModelError as error:
        log.error("error: %s", error)
        return 1
    log.info("worker %s (process %d): %d trials", options.owner, os.getpid(), count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
