"""A model's search space for one params.yaml: starting point, objective, changes of a trial.

Names here are the short ones of `mrmodel.config.search_space`; `SearchPlan.changes` turns a
trial's values into dotted paths of params.yaml.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from pydantic import BaseModel

from mrmodel.components import MODELS
from mrmodel.config.base import put, validate_section
from mrmodel.config.schema import Config, parse_config
from mrmodel.config.search_space import (
    Choice,
    Dimension,
    FloatRange,
    IntRange,
    Value,
    changed_space,
    full_name,
)
from mrmodel.errors import ConfigError, nearest_names
from mrmodel.evaluate.run import get_protocol

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """What is tuned: the model, and the section of `train`."""

    model: str
    run: str


class SearchPlan:
    """The dimensions of a search, its starting point, and the mapping from values to parameters.

    Args:
        config: starting point; settings that are not searched stay unchanged.
        target: what is tuned.
        space: dimensions by short name.

    Raises:
        ConfigError: a dimension names a setting that does not exist.
    """

    def __init__(self, config: Config, target: Target, space: Mapping[str, Dimension]) -> None:
        self.config, self.target = config, target
        self.space: dict[str, Dimension] = {}
        self.start: dict[str, Value] = {}
        for name, dimension in _in_order(space).items():
            found = self.setting(config, name)
            value = dimension.unset if found is None and dimension.unset is not None else found
            if getattr(dimension, "log", False) and value == 0:
                log.info("%s is 0, which switches it off: it is not searched", name)
                continue
            self.space[name] = _holding(dimension, path_in(config, target, name), value)
            self.start[name] = value

    def setting(self, config: Config, name: str) -> Any:
        """Value of the setting `name` (searched or not) in a configuration, defaults included.

        Raises:
            ConfigError: there is no such setting.
        """
        path = path_in(config, self.target, name)
        parts = path.split(".")
        if parts[0] == "models":
            settings = MODELS.get(parts[1]).Settings
            found: Any = validate_section(settings, config.models[parts[1]], f"models.{parts[1]}")
            parts = parts[2:]
        else:
            found = config
        for part in parts:
            found = _inside(found, part, path)
        return found

    def active(self, name: str, values: Mapping[str, Value]) -> bool:
        """Whether the conditions of a dimension hold, given a trial's values so far."""
        return all(
            (values[other] if other in values else self.setting(self.config, other)) in allowed
            for other, allowed in self.space[name].when.items()
        )

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """A trial's values for all dimensions whose conditions hold."""
        values: dict[str, Value] = {}
        for name, dimension in self.space.items():
            if self.active(name, values):
                values[name] = _suggest(trial, name, dimension)
        return values

    def starting_values(self) -> dict[str, Value]:
        """The starting point as values of a trial."""
        values: dict[str, Value] = {}
        for name in self.space:
            if self.active(name, values):
                values[name] = self.start[name]
        return values

    def values_of(self, other: Config) -> dict[str, Value]:
        """The values of another configuration, clipped to the ranges; e.g. a paper's."""
        values: dict[str, Value] = {}
        for name, dimension in self.space.items():
            found = self.setting(other, name)
            value = dimension.unset if found is None else found
            if self.active(name, values) and value is not None:
                nearest = _nearest(dimension, value)
                if nearest is not None:
                    values[name] = nearest
        return values

    def changes(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """Dotted path in params.yaml -> new value, for values that differ from the start."""
        found: dict[str, Any] = {}
        for name, value in values.items():
            if value == self.start[name]:
                continue
            path = path_in(self.config, self.target, name)
            parent, _, last = path.rpartition(".")
            if last.isdigit():  # An element of a list: the whole list is written.
                listed = name.rpartition(".")[0]
                numbers = found.setdefault(parent, list(self.setting(self.config, listed)))
                numbers[int(last)] = value
            else:
                found[path] = value
        return found

    def check_ends(self) -> None:
        """Validate both ends of every range, and every choice, one at a time.

        Raises:
            ConfigError: names the dimension with an invalid value.
        """
        raw = self.config.model_dump()
        for name, dimension in self.space.items():
            if not self.active(name, self.start):
                continue
            if isinstance(dimension, Choice):
                ends: list[Value] = list(dimension.choices)
            else:
                ends = [dimension.low, dimension.high]
            for end in ends:
                try:
                    changed_config(raw, self.changes({name: end}))
                except ConfigError as error:
                    rule = f"of its dimension {name!r}, breaks a rule: {error}"
                    path = path_in(self.config, self.target, name)
                    raise ConfigError(path, end, rule) from None


def path_in(config: Config, target: Target, name: str) -> str:
    """Dotted path of a dimension in `config`; what the tuned run has of its own is there."""
    path = full_name(name, target.model, target.run)
    section, _, key = path.rpartition(".")
    if section == "train" and key in config.train.own(target.run):
        return f"train.{target.run}.{key}"
    return path


def changed_config(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """A configuration with some values changed.

    Args:
        raw: the parameter tree.
        changes: dotted path -> value.

    Raises:
        ConfigError: the combination of values is invalid.
    """
    tree: dict[str, Any] = copy.deepcopy(dict(raw))
    for path, value in changes.items():
        put(tree, path, value)
    return parse_config(tree)


def _in_order(space: Mapping[str, Dimension]) -> dict[str, Dimension]:
    """Dimensions sorted so that each follows those in its conditions, else in the given order.

    Raises:
        ConfigError: conditions are circular.
    """
    left, ordered = dict(space), dict[str, Dimension]()
    while left:
        ready = [name for name, one in left.items() if not set(one.when) & left.keys() - {name}]
        if not ready:
            rule = "have conditions that look at each other"
            raise ConfigError(", ".join(left), None, rule)
        ordered |= {name: left.pop(name) for name in ready}
    return ordered


def _inside(found: Any, part: str, path: str) -> Any:
    if isinstance(found, list) and part.isdigit() and int(part) < len(found):
        return found[int(part)]
    known = list(type(found).model_fields) if isinstance(found, BaseModel) else []
    if part not in known:
        raise ConfigError(path, None, "no such setting", nearest_names(part, known))
    return getattr(found, part)


def _holding(dimension: Dimension, name: str, start: Value) -> Dimension:
    """The dimension, widened to include the starting point."""
    if start is None and not isinstance(dimension, Choice):
        rule = "is null in params.yaml; write a value for the search to start from"
        raise ConfigError(name, None, rule)
    if isinstance(dimension, Choice):
        if start in dimension.choices:
            return dimension
        return dimension.model_copy(update={"choices": [*dimension.choices, start]})
    if isinstance(start, bool | str) or start is None:
        raise ConfigError(name, start, "is no number, but its dimension is a range")
    low, high = min(dimension.low, start), max(dimension.high, start)
    if isinstance(dimension, IntRange):
        if (start - dimension.low) % dimension.step:
            raise ConfigError(name, start, f"is not reached from low {low} in the steps given")
        return dimension.model_copy(update={"low": int(low), "high": int(high)})
    return dimension.model_copy(update={"low": float(low), "high": float(high)})


def _nearest(dimension: Dimension, value: Value) -> Value:
    """The value of the dimension nearest to `value`; None: not one of its choices."""
    if isinstance(dimension, Choice):
        return value if value in dimension.choices else None
    assert isinstance(value, int | float)
    cut = min(max(value, dimension.low), dimension.high)
    if isinstance(dimension, IntRange):
        return int(dimension.low + round((cut - dimension.low) / dimension.step) * dimension.step)
    return float(cut)


def _suggest(trial: optuna.Trial, name: str, dimension: Dimension) -> Value:
    if isinstance(dimension, FloatRange):
        return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    if isinstance(dimension, IntRange):
        low, high = dimension.low, dimension.high
        return trial.suggest_int(name, low, high, step=dimension.step, log=dimension.log)
    chosen: Value = trial.suggest_categorical(name, dimension.choices)
    return chosen


# Set for workers that share a machine.
THREADS = "MRMODEL_TUNE_THREADS"


def target_of(config: Config) -> Target:
    """The target of ``tune``."""
    return Target(config.tune.model or config.train.models[0], config.tune.run)


def objectives_of(config: Config) -> list[str]:
    """The maximised metrics, the one used for pruning first."""
    return config.tune.figures or [get_protocol(config.evaluate.protocol).headline]


def threads_of() -> dict[str, Any]:
    """Changes that limit a worker's CPU threads, if its parent process sets a limit."""
    threads = os.environ.get(THREADS)
    if threads and not (threads.isascii() and threads.isdigit()):
        raise ConfigError(THREADS, threads, "expected a number of threads")
    return {"train.threads": int(threads)} if threads else {}


def training_plan(config: Config) -> SearchPlan:
    """First level: loss weights, noise scales, schedule.

    Raises:
        ConfigError: ``tune.space`` names an unknown dimension, or is invalid.
    """
    target = target_of(config)
    declared = MODELS.get(target.model).search_space
    return SearchPlan(config, target, changed_space(declared, config.tune.space, "tune.space"))


def post_hoc_plan(config: Config) -> SearchPlan:
    """Second level: post-processing after the heads of a trained model.

    Raises:
        ConfigError: ``tune.post_hoc.space`` names an unknown dimension, or is invalid.
    """
    target = target_of(config)
    declared = MODELS.get(target.model).post_hoc_space
    changes = config.tune.post_hoc.space
    return SearchPlan(config, target, changed_space(declared, changes, "tune.post_hoc.space"))
