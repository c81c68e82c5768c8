"""What is tuned and maximised, and where: what the model declares, as params.yaml changes it."""

from __future__ import annotations

import os
from typing import Any

from mrmodel.components import MODELS
from mrmodel.config import Config
from mrmodel.evaluate.run import get_protocol
from mrmodel.search_space import changed_space
from mrmodel.tune.space import SearchPlan, Target

# Set for workers that share one machine.
THREADS = "MRMODEL_TUNE_THREADS"


def target_of(config: Config) -> Target:
    """What ``tune`` is about."""
    return Target(config.tune.model or config.train.models[0], config.tune.run)


def figures_of(config: Config) -> list[str]:
    """The figures that are maximised, the one that prunes first."""
    return config.tune.figures or [get_protocol(config.evaluate.protocol).headline]


def threads_of() -> dict[str, Any]:
    """Changes that hold a worker to its share of the cores, where whoever started it says so."""
    threads = os.environ.get(THREADS)
    return {"train.threads": int(threads)} if threads else {}


def training_plan(config: Config) -> SearchPlan:
    """First level: loss weights, noise scales, schedule.

    Raises:
        ConfigError: ``tune.space`` names an unknown dimension, or breaks a rule.
    """
    target = target_of(config)
    declared = MODELS.get(target.model).search_space
    return SearchPlan(config, target, changed_space(declared, config.tune.space, "tune.space"))


def post_hoc_plan(config: Config) -> SearchPlan:
    """Second level: what follows the heads of a trained model.

    Raises:
        ConfigError: ``tune.post_hoc.space`` names an unknown dimension, or breaks a rule.
    """
    target = target_of(config)
    declared = MODELS.get(target.model).post_hoc_space
    changes = config.tune.post_hoc.space
    return SearchPlan(config, target, changed_space(declared, changes, "tune.post_hoc.space"))
