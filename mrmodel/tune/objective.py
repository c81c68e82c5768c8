"""First level: a trial trains the model with changed values, scored on validation data only."""

from __future__ import annotations

import gc
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.trial import FrozenTrial

from mrmodel.config.schema import Config, parse_config
from mrmodel.errors import StoppedEarly, TuningError, nearest_names, suggestion
from mrmodel.experiments.control_run import EvaluationSet
from mrmodel.progress import NullReporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.trainer import (
    TrainingJob,
    pretraining_files,
    pretraining_sets,
    run_settings,
    train_model,
    validation_of,
)
from mrmodel.train.loop import Progress
from mrmodel.tune.space import (
    SearchPlan,
    changed_config,
    objectives_of,
    path_in,
    target_of,
    threads_of,
    training_plan,
)
from mrmodel.tune.study import START, Facts
from mrmodel.tune.worker import ClaimedTrial, Objective, SmallerBatch, TrialResult


class StalledPruner(BasePruner):
    """Prunes a trial that another pruner would prune and that has stopped improving.

    Optuna's PatientPruner calls the inner pruner for stalled trials only, so Hyperband would
    compare only these with each other; and it treats a plateau as a gain. Here every trial enters
    the comparison. Metrics are maximised.

    Args:
        inner: pruner that compares with other trials; called at each report.
        patience: number of reports without a gain until a trial is stalled; 0: always stalled.
        min_delta: minimum gain, exclusive.
    """

    def __init__(self, inner: BasePruner, patience: int, min_delta: float) -> None:
        self.inner, self.patience, self.min_delta = inner, patience, min_delta

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to prune `trial` at its last report."""
        falls_behind = self.inner.prune(study, trial)
        return falls_behind and self._has_stalled(trial)

    def _has_stalled(self, trial: FrozenTrial) -> bool:
        if not self.patience:
            return True
        values = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        before, lately = values[: -self.patience], values[-self.patience :]
        return bool(before) and max(lately) <= max(before) + self.min_delta


log = logging.getLogger(__name__)

# Passes over the validation data; the fastest one is used.
_LATENCY_PASSES = 2


class TrainingObjective(Objective):
    """Trains with a trial's values; `facts.about` has `epochs`, the maximum of any trial."""

    def __init__(self, facts: Facts) -> None:
        self._config = for_trials(parse_config(facts.config))
        self._raw = self._config.model_dump()
        self._plan: SearchPlan = training_plan(self._config)
        self._epochs: int = facts.about["epochs"]

    @staticmethod
    def needs(facts: Facts) -> list[Path]:
        """Annotations, features, initial weights."""
        return read_by_training(parse_config(facts.config))

    @property
    def pruner(self) -> BasePruner:
        """Hyperband over epochs, for trials without a gain for some validations."""
        tune = self._config.tune
        if not tune.prune.enabled or len(tune.figures) > 1:
            return NopPruner()
        hyperband = HyperbandPruner(
            min_resource=min(tune.prune.min_epochs, self._epochs),
            max_resource=self._epochs,
            reduction_factor=tune.prune.reduction,
        )
        return StalledPruner(hyperband, tune.prune.patience, tune.prune.min_delta)

    def __call__(self, claimed: ClaimedTrial) -> TrialResult:
        """Train.

        Raises:
            SmallerBatch: out of memory.
        """
        changes = self._plan.changes(self._plan.suggest(claimed.trial))
        if claimed.batch is not None:
            path = path_in(self._config, target_of(self._config), "train.batch_size")
            changes[path] = claimed.batch
        claimed.trial.set_user_attr("changes", changes)
        result = self._try(claimed, changes)
        if result is not None:
            return result
        # Outside of the handler: the error's traceback would keep the memory allocated.
        gc.collect()
        torch.cuda.empty_cache()
        train = changed_config(self._raw, changes).train
        batch = train.for_run(self._config.tune.run).batch_size
        if batch == 1:
            raise StoppedEarly("not even a batch of one sample fits into memory")
        raise SmallerBatch(batch // 2)

    def _try(self, claimed: ClaimedTrial, changes: Mapping[str, Any]) -> TrialResult | None:
        """The result; None: out of memory."""
        config = changed_config(self._raw, changes)
        paths, tune = Paths(config), config.tune
        folder = paths.state / "tune" / claimed.study / f"{claimed.origin:04d}"
        label = f"{claimed.study}-{claimed.origin:04d}"
        job = job_of(config, folder, label, config.seed)
        objectives = objectives_of(config)
        select = run_settings(config, job.run).select
        watch = _Watch(claimed, objectives, select == "best")
        try:
            progress = train_model(config, job, NullReporter(), watch)
            latency_s = None
            if tune.max_latency_s is not None:
                latency_s = _latency_s(config, paths, job)
                claimed.trial.set_constraint("latency", latency_s - tune.max_latency_s)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:  # Not after a SIGKILL: the next attempt resumes from there.
            for left in (folder, paths.state / "resume" / job.name):
                shutil.rmtree(left, ignore_errors=True)
        found = chosen_metrics(progress, select)
        return TrialResult(
            [_metric(found, name) for name in objectives],
            {"figures": found, "latency_s": latency_s, "seconds": round(progress.seconds, 3)},
        )


def for_trials(config: Config) -> Config:
    """Settings of trials: validated often enough for pruning, with limited CPU threads."""
    often = {"train.validate_every_epochs": config.tune.validate_every_epochs}
    return changed_config(config.model_dump(), often | threads_of())


class _Watch:
    """Reports each validation of a trial to Optuna, and stops it if it is pruned."""

    def __init__(self, claimed: ClaimedTrial, objectives: list[str], peak: bool) -> None:
        """For a trial that ends with the weights of its best validation (`peak`), or the last."""
        self._claimed, self._objectives, self._peak = claimed, objectives, peak
        self._best = -math.inf

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Report the maximised metric at this epoch.

        Raises:
            StoppedEarly: the trial is pruned.
            TuningError: the evaluation has no such metric.
        """
        validated = validation_of(metrics)
        if not validated:
            return
        value, *_ = [_metric(validated, name) for name in self._objectives]
        if len(self._objectives) > 1:  # Optuna cannot prune multi-objective studies.
            return
        self._best = max(self._best, value) if self._peak else value
        trial, epoch = self._claimed.trial, int(metrics["epoch"])
        trial.report(self._best, epoch)
        # Never prune the starting point: all gains are relative to it.
        if trial.should_prune() and self._claimed.source != START:
            raise StoppedEarly(f"pruned at epoch {epoch} with {self._objectives[0]} {value:.2f}")


def job_of(
    config: Config, folder: Path, label: str, seed: int, start: Path | None = None
) -> TrainingJob:
    """The training job to tune, with its results in `folder`.

    Args:
        config: all settings.
        folder: for the model and the learning curves.
        label: name of its run.
        seed: random seed.
        start: initial weights of ``finetune``; None: those of the main job.
    """
    paths, run = Paths(config), config.tune.run
    if run == "pretrain":
        train, val = pretraining_files(paths)
    else:
        train, val = paths.split("train"), paths.split("val")
    if run == "finetune":
        start = start or paths.model(config.train.start, target_of(config).model)
    return TrainingJob(
        run=run,
        model=target_of(config).model,
        seed=seed,
        train=train,
        val=val,
        start=start,
        out=folder / "model",
        metrics_path=folder / "training" / run,
        label=label,
    )


def read_by_training(config: Config) -> list[Path]:
    """DVC outputs that the training job reads."""
    paths, job = Paths(config), job_of(config, Path(), "", config.seed)
    streams = [*config.features.video_streams, *config.features.text_streams]
    start = [] if job.start is None else [job.start]
    return [*annotations_of(config), *map(paths.stream, streams), *start]


def annotations_of(config: Config) -> list[Path]:
    """The annotation files that the training job reads, or may choose to read."""
    if config.tune.run == "pretrain":
        return read_by_pretraining(Paths(config))
    job = job_of(config, Path(), "", config.seed)
    return [job.train, job.val]


def read_by_pretraining(paths: Paths) -> list[Path]:
    """Files that decide what a pre-training reads, and those that it reads."""
    return [file for files in pretraining_sets(paths) for file in files]


def chosen_metrics(progress: Progress, select: str) -> dict[str, float]:
    """Validation metrics of the final weights of a training."""
    validated = [row for row in progress.history if validation_of(row)]
    if select == "best":
        validated = [row for row in validated if row["step"] == progress.best_step]
    return validation_of(validated[-1]) if validated else {}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an out-of-memory error, of a GPU or the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)


def _latency_s(config: Config, paths: Paths, job: TrainingJob) -> float:
    """Seconds per query, forward pass and decoding, on the validation data."""
    rows = EvaluationSet(config, paths, job.val)
    model = rows.model(job.out)
    seconds = min(rows.seconds(model) for _ in range(_LATENCY_PASSES))
    return seconds / len(rows.data.annotations)


def _metric(found: Mapping[str, float], name: str) -> float:
    if name not in found:
        near = nearest_names(name, found)
        rule = f"is no figure of this evaluation ({', '.join(found) or 'nothing was validated'})"
        raise TuningError(f"tune.figures: {name!r} {rule}{suggestion(near)}")
    value = found[name]
    return value if math.isfinite(value) else 0.0
