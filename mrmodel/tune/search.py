"""A whole search, from top to bottom: tune training, confirm, tune post-processing.

All state is in the studies, so a search that was killed can be resumed: each step first checks
which of its trials exist already.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mrmodel import presets
from mrmodel.config.schema import Config, parse_config
from mrmodel.errors import DataError, TuningError
from mrmodel.evaluate.significance import Comparison
from mrmodel.files import digest_of, parse_yaml, read_yaml, sha256_of
from mrmodel.stages.trainer import run_settings
from mrmodel.storage import open_store
from mrmodel.tune import confirm
from mrmodel.tune.confirm import CANDIDATE, SEED, ConfirmationCandidate, ConfirmationPlan
from mrmodel.tune.objective import TrainingObjective, job_of, read_by_training
from mrmodel.tune.post_hoc import ConfirmedRuns, post_hoc_facts
from mrmodel.tune.result import (
    Confirmed,
    Gain,
    PostHocSelection,
    SearchResult,
    discard_result,
    save_result,
)
from mrmodel.tune.space import (
    changed_config,
    objectives_of,
    post_hoc_plan,
    target_of,
    training_plan,
)
from mrmodel.tune.study import (
    PAPER,
    REASON,
    REQUIRED,
    SOURCE,
    START,
    Facts,
    TrialQueue,
    is_feasible,
)
from mrmodel.tune.worker_pool import TrialWorkerPool, follow

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SearchContext:
    """Resources of a search.

    Attributes:
        storage: of the studies.
        store: URL of a store that all workers reach.
        worker_pool: the worker pool.
        on_progress: called repeatedly while they work, with the study.
    """

    storage: BaseStorage
    store: str
    worker_pool: TrialWorkerPool
    on_progress: Callable[[TrialQueue], None]


def search(config: Config, context: SearchContext) -> SearchResult:
    """Start or resume a search; returns when the last step is done.

    Raises:
        ConfigError: the space does not fit the model.
        TuningError: the study has other settings; or trials fail in a way that all would.
        DataError: there are no records to train with, or to validate with.
    """
    study = open_search(config, context)
    discard_result(study)
    carry_out(study, config, context)
    result = search_summary(study, config)
    best = candidates(study, config.tune.confirm.best)
    choosing = config.tune.post_hoc.trials > 0 and len(config.tune.figures) < 2
    # Post-processing can be tuned for the starting point too, if no trial was better.
    if best or choosing:
        confirmation, plan = open_confirmation(study, config, best, context)
        carry_out(confirmation, config, context)
        confirmed, dropped = confirmed_candidates(confirmation, plan, config)
        found = {"seeds": plan.seeds, "candidates": confirmed, "dropped": dropped}
        result = result.model_copy(update=found)
        if choosing:
            chosen = choose_after_training(confirmation, plan, result, context)
            result = result.model_copy(update={"after_training": chosen})
    save_result(study, result)
    return result


def carry_out(study: TrialQueue, config: Config, context: SearchContext) -> None:
    """Run all enqueued trials of a study."""
    follow(study, context.worker_pool, config.tune.workers, lambda: context.on_progress(study))


def open_search(config: Config, context: SearchContext) -> TrialQueue:
    """The study of the first level, with an enqueued trial for each one that is not done yet."""
    tune, plan = config.tune, training_plan(config)
    if not plan.starting_values():
        raise TuningError("tune.space leaves nothing to search")
    plan.check_ends()
    facts = Facts(
        objective=f"{TrainingObjective.__module__}:{TrainingObjective.__name__}",
        config=config.model_dump(),
        about={"epochs": epochs_of(config), "inputs": inputs_of(config)},
        store=f"{context.store.rstrip('/')}/{tune.study}",
        title=f"tune {tune.study}",
        attempts=tune.attempts,
    )
    count = len(objectives_of(config))
    study = TrialQueue.create(context.storage, tune.study, facts, count, tune.seed)
    given = {START: plan.starting_values()}
    paper = paper_config(config)
    if paper is not None and plan.values_of(paper) != given[START]:
        given[PAPER] = plan.values_of(paper)
    there = {trial.user_attrs.get(SOURCE) for trial in study.trials()}
    for source, values in given.items():
        if source not in there:
            study.enqueue(values, **{SOURCE: source})
    if study.live() > tune.trials and study.live() > len(given):
        rule = f"has {study.live()} trials already; tune.trials = {tune.trials} would be fewer"
        raise TuningError(f"the study {study.name!r} {rule}")
    study.fill(tune.trials)
    return study


def inputs_of(config: Config) -> dict[str, str]:
    """Path -> hash of the inputs of trials, so that only results of equal inputs are compared.

    Annotations are hashed here; hashes of initial weights and features come from dvc.lock, since
    the process that runs a search need not have them.
    """
    job = job_of(config, Path(), "", config.seed)
    found = {str(file): sha256_of(file) for file in (job.train, job.val)}
    lock = Path("dvc.lock")
    stages = read_yaml(lock)["stages"] if lock.exists() else {}
    made = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    for needed in map(str, read_by_training(config)):
        for path, md5 in made.items():
            if f"{path}/".startswith(f"{needed}/") and path not in found:
                found[path] = md5
    return found


def epochs_of(config: Config) -> int:
    """The maximum number of epochs of a training of ``tune.run``.

    Raises:
        DataError: there are no records to train with, or none to validate with.
    """
    run = run_settings(config, config.tune.run)
    job = job_of(config, Path(), "", config.seed)
    counts = {}
    for file in (job.train, job.val):
        counts[file] = file.read_bytes().count(b"\n") if file.exists() else 0
        if not counts[file]:
            rule = "has no rows; a search needs rows to train and to validate with (dvc repro)"
            raise DataError(rule, file=file)
    if run.epochs is not None:
        return run.epochs
    batch_size = config.train.for_run(config.tune.run).batch_size
    steps_per_epoch = math.ceil(counts[job.train] / batch_size)
    return math.ceil((run.steps or 1) / steps_per_epoch)


def paper_config(config: Config) -> Config | None:
    """The published values for QVHighlights, if there is a preset for them."""
    name = f"qvhighlights_{target_of(config).model}"
    return parse_config(parse_yaml(presets.render(name))) if name in presets.names() else None


def search_summary(study: TrialQueue, config: Config) -> SearchResult:
    """Summary of the first level."""
    start = start_of(study)
    return SearchResult(
        figure=objectives_of(config)[0],
        start=None if start is None else start.values[0],
        best=study.best_value(),
        trials=len(study.done()),
        seeds=[],
        candidates=[],
        after_training=None,
    )


def start_of(study: TrialQueue) -> FrozenTrial | None:
    """The trial of the starting point, if it completed."""
    found = study.trials(TrialState.COMPLETE)
    return next((trial for trial in found if trial.user_attrs.get(SOURCE) == START), None)


def candidates(study: TrialQueue, count: int) -> list[ConfirmationCandidate]:
    """The best feasible trials above the starting point; with two metrics, of the Pareto front."""
    complete = [trial for trial in study.trials(TrialState.COMPLETE) if is_feasible(trial)]
    start = start_of(study)
    if len(study.directions) > 1:
        numbers = {trial.number for trial in study.handle.best_trials}
        complete = [trial for trial in complete if trial.number in numbers]
    elif start is not None:
        complete = [trial for trial in complete if trial.values[0] > start.values[0]]
    found: dict[str, ConfirmationCandidate] = {}
    for trial in sorted(complete, key=lambda trial: (-trial.values[0], trial.number)):
        changes = trial.user_attrs["changes"]
        if changes:
            found.setdefault(digest_of(changes), ConfirmationCandidate(trial.number, changes))
    return list(found.values())[:count]


def open_confirmation(
    study: TrialQueue, config: Config, best: Sequence[ConfirmationCandidate], context: SearchContext
) -> tuple[TrialQueue, ConfirmationPlan]:
    """The confirmation study of these candidates, with its enqueued trials."""
    start = start_of(study)
    plan = ConfirmationPlan.of(config, {} if start is None else start.user_attrs["changes"], best)
    facts = confirm.confirmation_facts(config, plan, study.facts)
    # Other candidates make another study, since a search may be extended.
    name = f"{study.name}.confirm.{facts.digest[:8]}"
    facts = replace(facts, store=f"{study.facts.store}/{name}")
    confirmation = TrialQueue.create(
        context.storage, name, facts, len(objectives_of(config)), config.tune.seed
    )
    # Trials that were killed too often are retried when the search is resumed.
    failed = TrialState.FAIL
    live = [trial for trial in confirmation.trials() if trial.state != failed]
    there = [trial.system_attrs["fixed_params"] for trial in live]
    for claimed in plan.enqueued():
        if claimed not in there:
            confirmation.enqueue(claimed, **{REQUIRED: True})
    return confirmation, plan


def confirmed_candidates(
    confirmation: TrialQueue, plan: ConfirmationPlan, config: Config
) -> tuple[list[Confirmed], list[str]]:
    """Results of each candidate's runs, and the candidates with missing runs.

    Raises:
        TuningError: runs of the starting point are missing.
    """
    store = open_store(confirmation.facts.store)
    runs = {(one.params[CANDIDATE], one.params[SEED]): one for one in confirmation.done()}
    found, dropped = [], []
    for number, one in enumerate(plan.candidates):
        mine = {seed: runs[number, seed] for seed in plan.seeds}
        bad = [
            f"seed {seed}: {run.user_attrs.get(REASON)}"
            for seed, run in mine.items()
            if run.state != TrialState.COMPLETE
        ]
        if bad and number == 0:
            raise TuningError(f"the starting point cannot be trained again: {'; '.join(bad)}")
        if bad:
            dropped.append(f"trial {one.trial}: {'; '.join(bad)}")
            continue
        gains = {}
        if number:
            for figure in objectives_of(config):
                gains[figure] = gain_of(
                    confirm.compare_candidates(store, plan, number, config, figure)
                )
        first, *others = objectives_of(config)
        found.append(
            Confirmed(
                trial=one.trial,
                changes=one.changes,
                values=[run.values[0] for run in mine.values()],
                gain=gains.get(first),
                others={name: gains[name] for name in others if name in gains},
            )
        )
    return found, dropped


def choose_after_training(
    confirmation: TrialQueue, plan: ConfirmationPlan, result: SearchResult, context: SearchContext
) -> PostHocSelection | None:
    """The second level, on the runs of the winner, or else of the starting point."""
    winner = result.winner
    trials = [one.trial for one in plan.candidates]
    number = 0 if winner is None else trials.index(winner.trial)
    config = changed_config(confirmation.facts.config, plan.candidates[number].changes)
    space = post_hoc_plan(config)
    if not space.starting_values():
        return None
    facts = post_hoc_facts(config, number, plan.seeds, confirmation.facts)
    name = confirmation.name.replace(".confirm.", ".post_hoc.")
    study = TrialQueue.create(context.storage, name, facts, 1, config.tune.seed)
    if not study.trials():
        study.enqueue(space.starting_values(), **{SOURCE: START})
    study.fill(config.tune.post_hoc.trials)
    carry_out(study, config, context)
    best = candidates(study, 1)
    if not best:
        return None
    runs = ConfirmedRuns(config, facts.store, facts.about)
    after = changed_config(config.model_dump(), best[0].changes)
    gain = gain_of(runs.compare(config, after))
    assert best[0].trial is not None
    return PostHocSelection(trial=best[0].trial, changes=best[0].changes, gain=gain)


def gain_of(comparison: Comparison) -> Gain:
    """A comparison in serialisable form."""
    found = comparison.difference
    return Gain(difference=float(found.value), low=float(found.low), high=float(found.high))
