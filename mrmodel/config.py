"""params.yaml as frozen, typed, ranged settings; one class a section.

Nothing here has a default: the file says everything, so that what DVC hashes is what runs.
A mistake becomes a `ConfigError` with the dotted path, the value, the rule and the nearest key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mrmodel.components import ENCODERS, MODELS, PROTOCOLS
from mrmodel.errors import ConfigError, UnknownNameError, nearest_names

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """A part of params.yaml: no unknown keys, no silent conversion, no change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


S = TypeVar("S", bound=Section)


class CorpusVideos(Section):
    """How many videos the sample corpus has, by what they are for."""

    pretrain: CountOrZero
    train: Count
    val: Count
    test: Count


class CorpusSettings(Section):
    """Where videos and annotations come from."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    source: Literal["sample", "folder"]
    folder: str | None
    seed: Seed
    videos: CorpusVideos
    duration_s: Annotated[int, Field(ge=10, le=600)]
    fps: Annotated[int, Field(ge=2, le=30)]
    width: Annotated[int, Field(ge=64, le=1920, multiple_of=16)]
    height: Annotated[int, Field(ge=64, le=1080, multiple_of=16)]
    crf: Annotated[int, Field(ge=0, le=51)]

    @model_validator(mode="after")
    def _folder_is_named(self) -> CorpusSettings:
        if self.source == "folder" and not self.folder:
            raise ValueError("source 'folder' needs the folder's path in `folder`")
        return self


class FeatureSettings(Section):
    """What is extracted, and how much may fail."""

    clip_len_s: Positive
    video_streams: Annotated[list[str], Field(min_length=1)]
    text_streams: Annotated[list[str], Field(min_length=1)]
    max_clips: Count
    max_tokens: Count
    max_failed_share: Share
    max_duration_s: Positive
    workers: CountOrZero


class IntervidSettings(Section):
    """InterVid-MR generation (SG-DETR section 4.3.2); the fields are written out by its preset."""

    preset: Literal["paper", "robust"]


class RunSettings(Section):
    """One training run: how long, how fast."""

    epochs: Count | None
    steps: Count | None
    lr: Positive
    schedule: Literal["constant", "step", "cosine"]
    drop_every_epochs: Count
    warmup_steps: CountOrZero
    select: Literal["best", "last"]

    @model_validator(mode="after")
    def _one_length(self) -> RunSettings:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps` (the other one null)")
        return self


class TrainSettings(Section):
    """Training of every model; the two runs differ in data, length and speed."""

    models: Annotated[list[str], Field(min_length=1)]
    batch_size: Count
    eval_batch_size: Count
    weight_decay: NonNegative
    clip_norm: Positive
    precision: Literal["fp32", "bf16"]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    threads: CountOrZero
    max_windows: Count
    validate_every_epochs: Count
    checkpoint_every_steps: Count
    pretrain: RunSettings
    finetune: RunSettings


class EvaluateSettings(Section):
    """How predictions are made and scored."""

    protocol: str
    mode: Literal["official", "clean"]
    nms_iou: Annotated[float, Field(ge=-1.0, le=1.0)]
    max_windows: Count
    zero_shot_sd: float
    bootstrap_resamples: Count


class TrackingSettings(Section):
    """The MLflow record; without a server it is a SQLite file below .mrmodel/."""

    enabled: bool
    experiment: Annotated[str, Field(min_length=1)]


class Config(Section):
    """params.yaml."""

    seed: Seed
    corpus: CorpusSettings
    features: FeatureSettings
    intervid: IntervidSettings
    models: dict[str, dict[str, Any]]
    train: TrainSettings
    evaluate: EvaluateSettings
    tracking: TrackingSettings


def load_config(path: Path) -> Config:
    """Read and check a parameter file.

    Raises:
        ConfigError: the first mistake found, with its dotted path.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        rule = "no such file; run from the repository root or `mrmodel preset apply sample`"
        raise ConfigError(str(path), None, rule) from None
    except yaml.YAMLError as error:
        raise ConfigError(str(path), None, f"not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(str(path), raw, "expected a mapping of sections")
    return parse_config(raw)


def parse_config(raw: dict[str, Any]) -> Config:
    """Check a parameter tree; see `load_config`."""
    config = validate_section(Config, raw)
    _check_names(config)
    return config


def validate_section(section: type[S], raw: Any, path: str = "") -> S:
    """`raw` as a `section`; the first mistake becomes a ConfigError below the dotted `path`."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise _as_config_error(section, error, path) from None


def _check_names(config: Config) -> None:
    for name in config.train.models:
        if name not in config.models:
            near = nearest_names(name, config.models)
            raise ConfigError("train.models", name, "has no section under `models`", near)
    for name, settings in config.models.items():
        _known(f"models.{name}", MODELS, name)
        validate_section(MODELS.get(name).Settings, settings, f"models.{name}")
    for field in ("video_streams", "text_streams"):
        for name in getattr(config.features, field):
            _known(f"features.{field}", ENCODERS, name)
    _known("evaluate.protocol", PROTOCOLS, config.evaluate.protocol)


def _known(path: str, registry: Any, name: str) -> None:
    if name not in registry:
        error = UnknownNameError(registry.kind, name, registry)
        rule = f"is not a known {registry.kind} (known: {', '.join(sorted(registry))})"
        raise ConfigError(path, name, rule, error.nearest)


def _as_config_error(section: type[BaseModel], error: ValidationError, path: str) -> ConfigError:
    first = error.errors(include_url=False)[0]
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
    return ConfigError(dotted, first["input"], rule[0].lower() + rule[1:])


def _fields_at(section: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        field = section.model_fields.get(part)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        section = inner
    return list(section.model_fields)
