"""``python -m mrmodel.tune.worker STUDY --owner LABEL``: run trials of a study until none waits.

The current folder is a repository with the training data. With ``--fetch`` it is a clone of the
tuned revision, and the worker first pulls the inputs of its trials. If it is killed, the process
that started it retries its trial (`mrmodel.tune.worker_pool`).
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
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import TrialState

from mrmodel.config.schema import parse_config
from mrmodel.errors import ConfigError, StoppedEarly, TrainingError, exit_codes
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

# They log every credential lookup and every file transfer.
_TALKATIVE = ("dvc", "dvc_objects", "dvc_data", "aiobotocore", "botocore", "s3fs")


@dataclass(frozen=True, slots=True)
class ClaimedTrial:
    """A trial as passed to its objective.

    Attributes:
        trial: suggests values, takes intermediate metrics.
        study: name of the study.
        origin: number of the first attempt; a retry resumes from its state.
        source: origin of its values, if they are fixed.
        batch: batch size, if an earlier attempt ran out of memory.
    """

    trial: optuna.Trial
    study: str
    origin: int
    source: str | None = None
    batch: int | None = None


class SmallerBatch(Exception):  # Not an error: the trial is repeated.
    """A trial ran out of memory; `batch` is the next size to try."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        super().__init__(f"out of memory; again with a batch of {batch}")


@dataclass(frozen=True, slots=True)
class TrialResult:
    """Result of a trial: the maximised metrics, and further information."""

    values: Sequence[float]
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Objective(Protocol):
    """Runs the trials of a study."""

    def __init__(self, facts: Facts) -> None: ...

    @staticmethod
    def needs(facts: Facts) -> list[Path]:
        """DVC outputs that its trials read, files or folders."""

    @property
    def pruner(self) -> BasePruner:
        """Decides when to prune a trial; never, unless the class says otherwise."""
        return NopPruner()

    def __call__(self, claimed: ClaimedTrial) -> TrialResult:
        """Run a trial.

        Raises:
            StoppedEarly: it is pruned.
            SmallerBatch: it needs a smaller one.
            TrainingError, ConfigError: these values cannot work.
            MrModelError: no trial can work; the worker exits.
        """


def objective_of(facts: Facts) -> type[Objective]:
    """The class of a study's objective."""
    module, _, name = facts.objective.partition(":")
    found: type[Objective] = getattr(importlib.import_module(module), name)
    return found


def load_objective(facts: Facts) -> Objective:
    """The objective of a study, ready to run trials."""
    return objective_of(facts)(facts)


def work(study: TrialQueue, owner: Owner) -> int:
    """Run trials until none waits; returns their number.

    Raises:
        MrModelError: a trial failed in a way that every other would too; it stays RUNNING until
            the process that started the worker sweeps it.
    """
    objective, count = load_objective(study.facts), 0
    while (trial := study.claim(owner, objective.pruner)) is not None:
        announce("step", name=f"{study.name} trial {trial.number}")
        run_trial(study, objective, trial)
        count += 1
    return count


def run_trial(study: TrialQueue, objective: Objective, trial: optuna.Trial) -> None:
    """Run a claimed trial and report its result."""
    frozen = study.trials()[trial.number]
    attributes = frozen.user_attrs
    claimed = ClaimedTrial(
        trial, study.name, origin_of(frozen), attributes.get(SOURCE), attributes.get(BATCH_SIZE)
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
    """`work`, with each trial as an MLflow child run of the search."""
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
    if spec.join is None:  # The search has no MLflow run, so neither have its trials.
        tracking = tracking.model_copy(update={"enabled": False})
    with open_run(tracking, spec):
        return work(study, owner)


def fetch_data(study: TrialQueue) -> None:
    """Pull the inputs of a study's trials into the current clone.

    Raises:
        OrchestrationError: data are missing.
    """
    from dvc.repo import Repo  # Takes over a second; workers with local data do not need it.

    from mrmodel.orchestrate.dvc_transfer import Transfer

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    environment = RuntimeEnvironment.from_environment()
    paths = [str(path) for path in objective_of(study.facts).needs(study.facts)]
    log.info("%s: pull %s", study.name, " ".join(paths))
    Transfer(environment, ResultStore(environment.result_store, environment.endpoint)).fetch(
        Repo(), paths
    )


def main() -> None:
    """Work on the study given as argument."""
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--owner", required=True)
    parser.add_argument("--fetch", action="store_true", help="pull the inputs of trials first")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with exit_codes():
        storage = open_storage(storage_address(Path(".mrmodel")))
        owner = Owner(options.owner, **process_tags())
        study = TrialQueue(storage, options.study)
        if options.fetch:
            fetch_data(study)
        count = recorded_work(study, owner)
    log.info("worker %s (process %d): %d trials", options.owner, os.getpid(), count)


if __name__ == "__main__":
    main()
