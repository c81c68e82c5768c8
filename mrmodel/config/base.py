"""Building blocks of settings: sections of params.yaml, numbers with ranges, clear errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mrmodel.errors import ConfigError, nearest_names

# Upper limits are far above what is useful: they turn a slip into an error, not into hours of work
# or a machine without memory.
MIN_CLIP_LEN_S, MAX_CLIP_LEN_S = 0.01, 3600.0
MAX_WORKERS, MAX_TRIALS = 1024, 100_000

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
ClipLength = Annotated[float, Field(ge=MIN_CLIP_LEN_S, le=MAX_CLIP_LEN_S)]
Patience = Annotated[float, Field(gt=0.0, le=365 * 86400.0)]
# Processes or threads; 0 is as many as there are cores.
Workers = Annotated[int, Field(ge=0, le=MAX_WORKERS)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Resamples = Annotated[int, Field(ge=1, le=1_000_000)]


class Section(BaseModel):
    """A part of params.yaml: no unknown keys, no implicit conversion, finite, immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Put a value into nested mappings at a dotted path, whose parents are made where missing."""
    *above, last = path.split(".")
    for part in above:
        tree = tree.setdefault(part, {})
    tree[last] = value


def first_mistake(error: ValidationError, whole: str = "", *, with_value: bool = False) -> str:
    """The first mistake in a file that pydantic has read: ``place: message``.

    Args:
        error: what pydantic raised.
        whole: the place of a mistake in no field; empty: the message alone.
        with_value: also say what was found, unless the message names it.
    """
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or whole
    if with_value and first["type"] not in ("missing", "value_error"):
        place += f" = {first['input']!r}"
    return f"{place}: {first['msg']}" if place else str(first["msg"])


S = TypeVar("S", bound=Section)


def validate_section(section: type[S], raw: Any, path: str = "") -> S:
    """`raw` as a `section`; the first mistake becomes a ConfigError below the dotted `path`."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise _as_config_error(section, error, path) from None


def _as_config_error(section: type[BaseModel], error: ValidationError, path: str) -> ConfigError:
    mistakes = error.errors(include_url=False)
    # A misspelt key is both unknown and missing; report the unknown one, which the user wrote.
    first = next((m for m in mistakes if m["type"] == "extra_forbidden"), mistakes[0])
    location = [str(part) for part in first["loc"]]
    dotted = ".".join(([path] if path else []) + location) or "params"
    if first["type"] == "extra_forbidden":
        known = _fields_at(section, location[:-1])
        return ConfigError(
            dotted, first["input"], "unknown key", nearest_names(location[-1], known)
        )
    if first["type"] == "missing":
        return ConfigError(dotted, None, "is missing; every key must be given")
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("int_type", "float_type") and _is_number_text(first["input"]):
        rule += ", and with quotes it is a text"
    if first["type"] == "bool_type" and str(first["input"]).lower() in ("yes", "no", "on", "off"):
        rule += ", and this is a text in YAML as DVC reads it: write true or false"
    return ConfigError(dotted, first["input"], rule[0].lower() + rule[1:])


def _is_number_text(value: object) -> bool:
    try:
        float(value if isinstance(value, str) else "")
    except ValueError:
        return False
    return True


def _fields_at(section: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        field = section.model_fields.get(part)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        section = inner
    return list(section.model_fields)
