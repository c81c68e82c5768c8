"""Search spaces: named dimensions with a range, a scale and a condition.

A model declares the dimensions of its settings and of its training (`MomentModel.search_space`);
params.yaml may change, add or remove some. Names are short: ``dn.groups`` is a setting of the
model, ``train.run.lr`` one of the tuned run, ``train.weight_decay`` one of all runs, and
``postprocess.nms_iou`` one of the post-processing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mrmodel.config.base import Section, validate_section
from mrmodel.errors import ConfigError, nearest_names

Finite = Annotated[float, Field(allow_inf_nan=False)]
Value = bool | int | float | str | None


class Condition(Section):
    """Attributes common to all dimensions.

    Attributes:
        when: name -> values; the dimension exists only if each of these settings has one of its
            values. For settings that are searched too, the trial's value is used.
        unset: the number that null in params.yaml stands for, so that a search can start from it.
    """

    when: dict[str, list[Value]] = Field(default={})
    unset: Value = None


class FloatRange(Condition):
    """A real number in [low, high]; `log`: on a log scale."""

    type: Literal["float"] = "float"
    low: Finite
    high: Finite
    log: bool = False

    @model_validator(mode="after")
    def _range(self) -> FloatRange:
        _check_range(self.low, self.high, self.log)
        return self


class IntRange(Condition):
    """An integer in [low, high], in steps."""

    type: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False
    step: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _range(self) -> IntRange:
        _check_range(self.low, self.high, self.log)
        if self.log and self.step != 1:
            raise ValueError("step must be 1 where log is true")
        if (self.high - self.low) % self.step:
            raise ValueError(f"high - low is no multiple of step {self.step}")
        return self


class Choice(Condition):
    """A categorical value."""

    type: Literal["choice"] = "choice"
    choices: Annotated[list[Value], Field(min_length=1)]


Dimension = FloatRange | IntRange | Choice
SearchSpace = Mapping[str, Dimension]
_KINDS: dict[str, type[FloatRange] | type[IntRange] | type[Choice]] = {
    "float": FloatRange,
    "int": IntRange,
    "choice": Choice,
}


def changed_space(
    declared: SearchSpace, changes: Mapping[str, Mapping[str, Any] | None], path: str
) -> dict[str, Dimension]:
    """Apply the changes in params.yaml to a declared space.

    Args:
        declared: search space of the model.
        changes: name -> null: removed; keys of a declared dimension: changed; a mapping with
            `type`: a new dimension.
        path: path of `changes` in params.yaml, for errors.

    Raises:
        ConfigError: a name is not declared and has no `type`; a key, type or range is invalid.
    """
    space = dict(declared)
    for name, change in changes.items():
        here = f"{path}.{name}"
        if change is None:
            if name not in declared:
                raise ConfigError(here, None, "is not searched anyway", nearest_names(name, space))
            del space[name]
        elif "type" in change:
            space[name] = _dimension(change, here)
        elif name in declared:
            space[name] = _dimension(declared[name].model_dump() | dict(change), here)
        else:
            near = nearest_names(name, declared)
            rule = "is not a dimension of the model; one of your own needs a `type`"
            raise ConfigError(here, change, rule, near)
    return space


def full_name(name: str, model: str, run: str) -> str:
    """Dotted path of a dimension in params.yaml.

    Args:
        name: short name.
        model: name below `models`.
        run: section below `train` that is tuned.
    """
    if name.startswith("train.run."):
        return f"train.{run}.{name.removeprefix('train.run.')}"
    if name.startswith(("train.", "evaluate.", "postprocess.")):
        return name
    return f"models.{model}.{name}"


def _dimension(raw: Mapping[str, Any], path: str) -> Dimension:
    kind = raw.get("type")
    if kind not in _KINDS:
        near = nearest_names(str(kind), _KINDS)
        raise ConfigError(f"{path}.type", kind, f"must be one of {', '.join(_KINDS)}", near)
    return validate_section(_KINDS[str(kind)], dict(raw), path)


def _check_range(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low {low} is above high {high}")
    if log and low <= 0:
        raise ValueError(f"low {low} must be above 0 where log is true")
