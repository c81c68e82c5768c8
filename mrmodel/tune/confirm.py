"""Checks whether the best trials are better or lucky: each is trained again with several seeds.

A trial of this study is one candidate with one seed, trained as `dvc repro` would after the change:
with the validation schedule of the main job, and with its own pre-training if the change affects
pre-training. It publishes to the store of the study: the metrics per query, and the detections that
the second level works on.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrmodel.config.schema import Config, parse_config
from mrmodel.errors import TuningError, nearest_names, suggestion
from mrmodel.evaluate.significance import (
    BootstrapSettings,
    Comparison,
    PerQuery,
    bootstrap_over_seeds,
)
from mrmodel.experiments.control_run import EvaluationSet
from mrmodel.predict.post_hoc import CachedDetections, cache_detections
from mrmodel.progress import NullReporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.trainer import TrainingJob, pretraining_files, train_model
from mrmodel.storage import Store, open_store
from mrmodel.tune.objective import (
    is_out_of_memory,
    job_of,
    read_by_pretraining,
    read_by_training,
)
from mrmodel.tune.space import changed_config, objectives_of, target_of, threads_of
from mrmodel.tune.study import Facts
from mrmodel.tune.worker import ClaimedTrial, Objective, TrialResult

CANDIDATE, SEED = "candidate", "seed"


@dataclass(frozen=True, slots=True)
class ConfirmationCandidate:
    """A trial, or the starting point, to confirm.

    Attributes:
        trial: number in the search; None: the starting point.
        changes: dotted path -> value.
    """

    trial: int | None
    changes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ConfirmationPlan:
    """Plan of the confirmation study.

    Attributes:
        candidates: the starting point first, with the batch size that fitted into its memory.
        seeds: of each candidate.
        pretrains: every run begins with its own pre-training.
    """

    candidates: list[ConfirmationCandidate]
    seeds: list[int]
    pretrains: bool

    @classmethod
    def of(
        cls, config: Config, start: Mapping[str, Any], best: Sequence[ConfirmationCandidate]
    ) -> ConfirmationPlan:
        """The plan for these candidates; seeds are derived from that of the main job."""
        candidates = [ConfirmationCandidate(None, dict(start)), *best]
        seeds = [config.seed + number for number in range(config.tune.confirm.seeds)]
        touched = any(touches_pretraining(config, one.changes) for one in candidates)
        return cls(candidates, seeds, touched)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> ConfirmationPlan:
        """Read the output of `as_json`."""
        candidates = [ConfirmationCandidate(**one) for one in tree["candidates"]]
        return cls(candidates, list(tree["seeds"]), tree["pretrains"])

    def as_json(self) -> dict[str, Any]:
        """JSON form, for the facts of the study."""
        return asdict(self)

    def enqueued(self) -> list[dict[str, int]]:
        """All trials of the study."""
        return [
            {CANDIDATE: number, SEED: seed}
            for seed in self.seeds
            for number in range(len(self.candidates))
        ]


def touches_pretraining(config: Config, changes: Mapping[str, Any]) -> bool:
    """Whether `changes` affect the initial weights of a fine-tuning started by `dvc repro`."""
    if config.tune.run != "finetune" or config.train.start != "pretrained":
        return False
    elsewhere = ("train.finetune.", "train.scratch.", "evaluate.", "postprocess.")
    replaced = [f"train.{key}" for key in config.train.own("pretrain")]
    return any(not path.startswith(elsewhere) and path not in replaced for path in changes)


class ConfirmObjective(Objective):
    """Trains one candidate with one seed; `facts.about` is the `ConfirmationPlan`."""

    def __init__(self, facts: Facts) -> None:
        self._raw = changed_config(facts.config, threads_of()).model_dump()
        self._plan = ConfirmationPlan.from_json(facts.about)
        self._store = open_store(facts.store)

    @staticmethod
    def needs(facts: Facts) -> list[Path]:
        """As for the search, plus the rows to pre-train on if each run has its own pre-training."""
        config = parse_config(facts.config)
        pretrains = ConfirmationPlan.from_json(facts.about).pretrains
        before = read_by_pretraining(Paths(config)) if pretrains else []
        return [*read_by_training(config), *before]

    def __call__(self, claimed: ClaimedTrial) -> TrialResult:
        """Train, evaluate on validation data, publish."""
        plan = self._plan
        number = claimed.trial.suggest_categorical(CANDIDATE, range(len(plan.candidates)))
        seed = claimed.trial.suggest_categorical(SEED, plan.seeds)
        config = changed_config(self._raw, plan.candidates[number].changes)
        paths = Paths(config)
        folder = paths.state / "tune" / claimed.study / f"{number}-{seed}"
        job = self._train(config, folder, f"{claimed.study}-{number}-{seed}", seed)
        rows = EvaluationSet(config, paths, job.val)
        model = rows.model(job.out)
        scores = rows.score(rows.answers(model))
        metrics = rows.main_metrics(scores)
        detections = cache_detections(model, rows.data, config.train.eval_batch_size)
        wanted = objectives_of(config)
        publish_results(self._store, number, seed, only(scores.per_query, wanted), detections)
        shutil.rmtree(folder, ignore_errors=True)  # Not earlier: a killed run resumes from it.
        return TrialResult([metrics[name] for name in wanted], {"figures": metrics})

    def _train(self, config: Config, folder: Path, label: str, seed: int) -> TrainingJob:
        before = [pretraining(config, folder, label, seed)] if self._plan.pretrains else []
        job = job_of(config, folder, label, seed, before[0].out if before else None)
        for one in (*before, job):
            try:
                train_model(config, one, NullReporter())
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                size = config.train.for_run(one.run).batch_size
                rule = f"a batch of {size} does not fit into memory"
                raise TuningError(f"{label}: {rule}; search with a smaller batch_size") from None
        return job


def pretraining(config: Config, folder: Path, label: str, seed: int) -> TrainingJob:
    """The pre-training from which a fine-tuning in `folder` starts."""
    train, val = pretraining_files(Paths(config))
    return TrainingJob(
        run="pretrain",
        model=target_of(config).model,
        seed=seed,
        train=train,
        val=val,
        start=None,
        out=folder / "pretrained",
        metrics_path=folder / "training" / "pretrain",
        label=f"{label}-pretrain",
    )


def only(found: PerQuery, metrics: Sequence[str]) -> PerQuery:
    """The given metrics, per query.

    Raises:
        TuningError: a metric is not a mean over queries, so seeds cannot be compared by it.
    """
    for name in metrics:
        if name not in found.values:
            near = suggestion(nearest_names(name, found.values))
            raise TuningError(f"tune.figures: {name!r} has no values of single queries{near}")
    return PerQuery(found.qids, found.vids, {name: found.values[name] for name in metrics})


def publish_results(
    store: Store, number: int, seed: int, found: PerQuery, cached: CachedDetections
) -> None:
    """Write the metrics and detections of a run into the store."""
    values = {
        name: [value if math.isfinite(value) else None for value in column.tolist()]
        for name, column in found.values.items()
    }
    content = {"qids": found.qids, "vids": found.vids, "values": values}
    with tempfile.TemporaryDirectory(prefix="mrmodel-") as name:
        file = Path(name) / "detections.pt"
        cached.save(file)
        store.put(f"{number}-{seed}.pt", file.read_bytes())
    store.put(f"{number}-{seed}.json", json.dumps(content, allow_nan=False).encode())


def read_final_metrics(store: Store, number: int, seed: int) -> PerQuery:
    """The metrics per query of one run.

    Raises:
        TuningError: the run has not published them.
    """
    content = json.loads(_content(store, f"{number}-{seed}.json"))
    values = {
        name: np.array([math.nan if value is None else value for value in column])
        for name, column in content["values"].items()
    }
    return PerQuery(content["qids"], content["vids"], values)


def read_detections(store: Store, number: int, seed: int) -> CachedDetections:
    """The detections of one run; raises as `read_final_metrics`."""
    with tempfile.TemporaryDirectory(prefix="mrmodel-") as name:
        file = Path(name) / "detections.pt"
        file.write_bytes(_content(store, f"{number}-{seed}.pt"))
        return CachedDetections.load(file)


def compare_candidates(
    store: Store, plan: ConfirmationPlan, number: int, config: Config, figure: str
) -> Comparison:
    """Gain of a candidate over the starting point, across videos and seeds."""
    runs = [[read_final_metrics(store, one, seed) for seed in plan.seeds] for one in (0, number)]
    settings = BootstrapSettings(config.evaluate.bootstrap_resamples, config.seed)
    return bootstrap_over_seeds(runs[0], runs[1], figure, settings)


def _content(store: Store, key: str) -> bytes:
    found = store.get(key)
    if found is None:
        raise TuningError(f"{store.url} has no {key}: was it removed while the search ran?")
    return found.content


def confirmation_facts(config: Config, plan: ConfirmationPlan, facts: Facts) -> Facts:
    """The facts of the confirmation study, from those of the search."""
    return Facts(
        objective=f"{ConfirmObjective.__module__}:{ConfirmObjective.__name__}",
        config=config.model_dump(),
        about=plan.as_json(),
        store=facts.store,
        title=f"{facts.title}: confirmation",
        attempts=config.tune.attempts,
    )
