"""The section `tune` of params.yaml: hyperparameter search."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mrmodel.config.base import (
    MAX_TRIALS,
    MAX_WORKERS,
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    Section,
    Seed,
)
from mrmodel.names import ModelName, StudyName


class PruneSettings(Section):
    """Pruning of trials, checked at each validation during training.

    Attributes:
        enabled: false: every trial trains to its end.
        min_epochs: no pruning before this epoch.
        reduction: reduction factor of Hyperband.
        patience: prune only after this many validations without a gain above `min_delta`.
        min_delta: in points of the metric.
    """

    enabled: bool
    min_epochs: Count
    reduction: Annotated[int, Field(ge=2, le=1000)]
    patience: CountOrZero
    min_delta: NonNegative


class ConfirmSettings(Section):
    """Confirmation: retrain the `best` trials and the starting point with each of `seeds` seeds."""

    best: Annotated[int, Field(ge=1, le=1000)]
    seeds: Annotated[int, Field(ge=1, le=1000)]


class PostHocSettings(Section):
    """Post-hoc search of settings after training, on cached detections."""

    trials: Annotated[int, Field(ge=0, le=MAX_TRIALS)]
    space: dict[str, dict[str, Any] | None]


class TuneSettings(Section):
    """Hyperparameter search, `mrmodel tune`: docs/howto/tune.md; no stage depends on these.

    Attributes:
        study: name of the study in the storage.
        model: name below `models`; None: the first of `train.models`.
        run: section below `train` that is tuned.
        seed: seed of the sampler.
        trials: number of finished trials, not counting killed ones.
        workers: processes on one machine, or flow runs on a work pool.
        attempts: maximum attempts of a trial whose worker was killed.
        figures: metrics to maximise; empty: the protocol's headline. With two metrics the Pareto
            front is searched, without pruning.
        max_latency_s: seconds per query; slower trials are infeasible. None: no limit.
        validate_every_epochs: for trials; `train` has its own value.
        prune, confirm, post_hoc: see their classes.
        space: changes to the search space that the model declares.
    """

    study: StudyName
    model: ModelName | None
    run: Literal["pretrain", "finetune", "scratch"]
    seed: Seed
    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)]
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)]
    attempts: Annotated[int, Field(ge=1, le=20)]
    figures: Annotated[list[str], Field(max_length=2)]
    max_latency_s: Positive | None
    validate_every_epochs: Count
    prune: PruneSettings
    confirm: ConfirmSettings
    post_hoc: PostHocSettings
    space: dict[str, dict[str, Any] | None]
