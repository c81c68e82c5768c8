"""The section `tune` of params.yaml: a search for better values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mrmodel.config.base import Count, CountOrZero, NonNegative, Positive, Section, Seed


class PruneSettings(Section):
    """When a trial is given up; judged at each validation of the training.

    Attributes:
        enabled: false: every trial trains to its end.
        min_epochs: nobody is judged before.
        reduction: of the trials that reach a round of Hyperband, one in so many is good enough.
        patience: only after so many validations without a gain above `min_delta`.
        min_delta: in points of the figure.
    """

    enabled: bool
    min_epochs: Count
    reduction: Annotated[int, Field(ge=2)]
    patience: CountOrZero
    min_delta: NonNegative


class ConfirmSettings(Section):
    """The `best` trials and the starting point are trained again with each of so many seeds."""

    best: Count
    seeds: Count


class PostHocSettings(Section):
    """The second level: what can be chosen after training, on stored detections."""

    trials: CountOrZero
    space: dict[str, dict[str, Any] | None]


class TuneSettings(Section):
    """Search for better values, `mrmodel tune`: docs/howto/tune.md; no stage depends on these.

    Attributes:
        study: its name in the storage.
        model: name below `models`; None: the first of `train.models`.
        run: section below `train` that is tuned.
        seed: of the draws of the sampler.
        trials: so many end, killed ones not counted.
        workers: processes on one machine, or flow runs on a work pool.
        attempts: of a trial whose worker was killed.
        figures: what is maximised; empty: the protocol's headline. Of two figures the Pareto front
            is searched, without pruning.
        max_latency_s: seconds a query; slower trials are not feasible. None: no limit.
        validate_every_epochs: of trials; trainings of the main job have their own.
        prune, confirm, post_hoc: see there.
        space: changes to the dimensions that the model declares.
    """

    study: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    model: str | None
    run: Literal["pretrain", "finetune", "scratch"]
    seed: Seed
    trials: Count
    workers: Count
    attempts: Count
    figures: Annotated[list[str], Field(max_length=2)]
    max_latency_s: Positive | None
    validate_every_epochs: Count
    prune: PruneSettings
    confirm: ConfirmSettings
    post_hoc: PostHocSettings
    space: dict[str, dict[str, Any] | None]
