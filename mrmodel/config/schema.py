"""params.yaml as frozen, typed settings with ranges; one class per section.

Nothing here has a default: the file is complete, so that DVC hashes every value that is used.
Only keys that came later may be absent, which means null and what was done before they were there.
A mistake raises a `ConfigError` with the dotted path, the value, the rule and the nearest key.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from mrmodel.components import DATASETS, ENCODERS, MODEL_SETTINGS, MODELS, PROTOCOLS
from mrmodel.config.base import (
    BatchSize,
    ClipLength,
    Count,
    CountOrZero,
    NonNegative,
    Patience,
    Positive,
    Resamples,
    Section,
    Seed,
    Share,
    Workers,
    validate_section,
)
from mrmodel.config.intervid import IntervidSettings
from mrmodel.config.postprocess import PostprocessConfig
from mrmodel.config.tune import TuneSettings
from mrmodel.config.video_captions import VideoCaptionSettings
from mrmodel.devices import DEVICES, is_device
from mrmodel.errors import ConfigError, UnknownNameError, nearest_names
from mrmodel.files import read_yaml
from mrmodel.names import (
    CorpusName,
    FolderName,
    ModelName,
    PoolName,
    RegisteredModelName,
    StreamName,
)


class CorpusVideos(Section):
    """Number of videos of the sample corpus, by purpose."""

    pretrain: Annotated[int, Field(ge=0, le=100_000)]
    train: Annotated[int, Field(ge=1, le=100_000)]
    val: Annotated[int, Field(ge=1, le=100_000)]
    test: Annotated[int, Field(ge=1, le=100_000)]


class CorpusSettings(Section):
    """Where videos and annotations come from.

    `every_video`: also take videos of the folder that no row names: segments to pre-train on.
    `pretrain_ratings`: whether the ratings of ``pretrain.jsonl`` and ``pretrain_val.jsonl`` of the
    folder are used; if not, only their windows are.
    """

    name: CorpusName
    source: Literal["sample", "folder"]
    folder: FolderName
    pretrain_ratings: bool = True
    every_video: bool = False
    seed: Seed
    videos: CorpusVideos
    queries_per_video: Annotated[int, Field(ge=1, le=1000)]
    captions_per_video: Annotated[int, Field(ge=1, le=1000)]
    duration_s: Annotated[int, Field(ge=10, le=600)]
    fps: Annotated[int, Field(ge=2, le=30)]
    width: Annotated[int, Field(ge=64, le=1920, multiple_of=16)]
    height: Annotated[int, Field(ge=64, le=1080, multiple_of=16)]
    crf: Annotated[int, Field(ge=0, le=51)]


# Last component of `features.imports` if there are no imports.
NO_IMPORTS = "none"


class FeatureSettings(Section):
    """Feature streams, and limits of the extraction.

    `imports` is a folder of stores written by `mrmodel features import`, by name of the stream; an
    existing one is used instead of running the encoder of that name.
    """

    clip_len_s: ClipLength
    video_streams: Annotated[list[StreamName], Field(min_length=1)]
    text_streams: Annotated[list[StreamName], Field(min_length=1)]
    imports: FolderName
    max_clips: Count | None
    max_tokens: Count
    max_failed_share: Share
    max_duration_s: Positive
    workers: Workers

    @property
    def has_imports(self) -> bool:
        """Whether streams may come from imported features."""
        return PurePath(self.imports).name != NO_IMPORTS


# Settings of `train` that a run may have of its own.
PER_RUN = ("batch_size", "weight_decay")
# Keys of a run that earlier files do not have.
_LATER = (*PER_RUN, "warmup_from", "swa", "loss", "targets")


class SwaSettings(Section):
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights of epoch ends.

    Attributes:
        from_epoch: the first epoch whose last weights are averaged, counted from 1.
        lr: the learning rate of the epochs that are averaged.
        anneal_epochs: the rate gets there on a cosine in this many epochs after `from_epoch`.
    """

    from_epoch: Count
    lr: Positive
    anneal_epochs: Count


class TargetRules(Section):
    """How targets are made of annotations; see `mrmodel.data.targets.TargetSettings`."""

    keep: Literal["longest", "random"]
    clip_rule: Literal["overlap", "first_window"]


class RunSettings(Section):
    """Length, learning-rate schedule and result of one training run.

    Attributes:
        epochs, steps: its length, in one of the two.
        lr: the peak learning rate.
        schedule: see `mrmodel.train.optim.learning_rate`.
        step_size: for the schedule ``step``.
        milestones, gamma: for the schedule ``multistep``: at each of these epochs the rate is
            multiplied by gamma. The schedule ``linear`` has one milestone, where the decay begins.
        warmup, warmup_unit: length of the linear warm-up, in steps or epochs.
        warmup_from: its first rate as a fraction of `lr`; it then rises once per `warmup_unit`.
            None: see `mrmodel.train.optim.learning_rate`.
        swa: average the weights of the last epochs; None: do not. A run that ends before
            `from_epoch` averages nothing.
        batch_size, weight_decay: of this run; None: those of `train`.
        loss: weights of losses in this run, in place of those in the models' section `loss`.
        targets: how targets are made of annotations; None: ``longest``, ``overlap``.
        select: the last weights, or those of the best validation.
    """

    epochs: Count | None
    steps: Count | None
    lr: Positive
    schedule: Literal["constant", "step", "cosine", "linear", "multistep"]
    step_size: Count
    milestones: list[Count]
    gamma: Annotated[float, Field(gt=0.0, le=1.0)]
    warmup: CountOrZero
    warmup_unit: Literal["step", "epoch"]
    warmup_from: Share | None = None
    swa: SwaSettings | None = None
    batch_size: BatchSize | None = None
    weight_decay: NonNegative | None = None
    loss: dict[str, NonNegative] | None = None
    targets: TargetRules | None = None
    select: Literal["best", "last"]

    @model_serializer(mode="wrap")
    def _as_earlier_files(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without later keys that are null: digests of earlier files and searches stay equal."""
        tree: dict[str, Any] = write(self)
        return {key: value for key, value in tree.items() if value is not None or key not in _LATER}

    @model_validator(mode="after")
    def _one_length(self) -> RunSettings:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps` (the other one null)")
        return self

    @model_validator(mode="after")
    def _milestones_rise(self) -> RunSettings:
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones {self.milestones} must rise, each epoch named once")
        if self.schedule == "linear" and len(self.milestones) != 1:
            raise ValueError(
                f"milestones {self.milestones}: the schedule `linear` needs one, the epoch after "
                "which the rate falls"
            )
        return self

    @model_validator(mode="after")
    def _averages_something(self) -> RunSettings:
        if self.swa is not None and self.epochs is not None and self.swa.from_epoch > self.epochs:
            late = f"swa.from_epoch = {self.swa.from_epoch} is later than the last epoch"
            raise ValueError(f"{late}, epochs = {self.epochs}")
        return self


def _device(name: str) -> str:
    if not is_device(name):
        raise ValueError(DEVICES)
    return name


class TrainSettings(Section):
    """Training of every model; the three runs differ in data, length and speed.

    `start`: initial weights of fine-tuning: ``pretrained``, or ``imported`` ones
    (`mrmodel weights import`) in ``models/imported/<model>``. `weight_decay_on`: the parameters
    that `weight_decay` applies to, see `mrmodel.train.optim.build_optimizer`. A run may have a
    `batch_size` and `weight_decay` of its own.
    """

    models: Annotated[list[ModelName], Field(min_length=1)]
    start: Literal["pretrained", "imported"]
    batch_size: BatchSize
    eval_batch_size: BatchSize
    weight_decay: NonNegative
    weight_decay_on: Literal["all", "matrices"]
    clip_norm: Positive
    precision: Literal["fp32", "bf16"]
    device: Annotated[str, AfterValidator(_device)]
    threads: Workers
    max_windows: Count
    validate_every_epochs: Count
    checkpoint_every_steps: Count
    pretrain: RunSettings
    finetune: RunSettings
    scratch: RunSettings

    @model_validator(mode="after")
    def _scratch_is_a_fair_control(self) -> TrainSettings:
        steps = (self.pretrain.steps, self.finetune.steps, self.scratch.steps)
        if None not in steps and steps[0] + steps[1] != steps[2]:  # type: ignore[operator]
            raise ValueError(
                f"scratch.steps = {steps[2]} must equal pretrain.steps + finetune.steps = "
                f"{steps[0]} + {steps[1]}, or the comparison is not one of equal steps"
            )
        return self

    def own(self, run: str) -> dict[str, Any]:
        """The settings of `PER_RUN` that a run (``pretrain``, ...) has of its own."""
        values = {key: getattr(getattr(self, run), key) for key in PER_RUN}
        return {key: value for key, value in values.items() if value is not None}

    def for_run(self, run: str) -> TrainSettings:
        """These settings, with those that a run has of its own in place."""
        return self.model_copy(update=self.own(run))


class EvaluateSettings(Section):
    """How predictions are scored; the section `postprocess` defines how they are made."""

    protocol: str
    mode: Literal["official", "clean"]
    zero_shot_std: float
    bootstrap_resamples: Resamples


class TrackingSettings(Section):
    """MLflow tracking; without a server it uses a SQLite file below .mrmodel/."""

    enabled: bool
    experiment: Annotated[str, Field(min_length=1)]


class ShardSettings(Section):
    """How an extraction is distributed over workers; never changes its output."""

    count: Annotated[int, Field(ge=1, le=10_000)]
    runner: Literal["processes", "dask", "ray"]
    address: str | None

    @model_validator(mode="after")
    def _address_is_of_a_cluster(self) -> ShardSettings:
        if self.runner == "processes" and self.address is not None:
            raise ValueError("address: a pool of processes has none; runner must be dask or ray")
        return self


class OrchestrateSettings(Section):
    """Work pools, retries and timeouts of stages; not a DVC dependency."""

    pools: dict[str, PoolName]
    default_pool: PoolName
    attempts: Annotated[int, Field(ge=1, le=20)]
    stage_timeout_s: Patience
    start_timeout_s: Patience
    extract_shards: ShardSettings


class CardSettings(Section):
    """Text of the model card besides the metrics; the sample corpus has its own."""

    data_licence: Annotated[str, Field(min_length=1)] | None
    limits: list[Annotated[str, Field(min_length=1)]]


class PromotionSettings(Section):
    """Gates for promotion to champion; docs/explanation/gates.md explains them.

    Attributes:
        registered_model: its name in MLflow, and the folder of its pointer and audit objects.
        resamples, confidence: of the bootstrap over videos.
        min_gain: lower bound for the lower end of the interval of (candidate - champion) in the
            protocol's headline metric, in points.
        slices: metrics that must not drop; None: those of the protocol.
        max_slice_loss: maximum drop of each of them, in points.
        max_latency_s: median seconds for one query about the model's example video.
        max_size_mb: of all files of the registered model.
        smoke_timeout_s: timeout of the smoke test, which runs in a fresh process.
        card: see `CardSettings`.
    """

    registered_model: RegisteredModelName
    resamples: Annotated[int, Field(ge=1000, le=1_000_000)]
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)]
    min_gain: Annotated[float, Field(allow_inf_nan=False)]
    slices: list[str] | None
    max_slice_loss: NonNegative
    max_latency_s: Positive
    max_size_mb: Positive
    smoke_timeout_s: Patience
    card: CardSettings


class DriftSettings(Section):
    """Limits of drift between new data and the training data, beyond what chance explains.

    With a limit of None the metric is reported but not checked.

    Attributes:
        significance_level: false-positive rate for data like the training data; the resulting
            allowance shrinks with the size of the delivery and is added to each limit.
        duration_s, window_s, windows_per_query, words_per_query: Kolmogorov-Smirnov distances, from
            0 (equal distributions) to 1.
        unknown_words: fraction of words that no training query has, beyond what another video
            of the same kind would add.
        features: shift of the mean features, in standard deviations between training videos.
        videos: number of new videos that are encoded for this check.
    """

    significance_level: Annotated[float, Field(gt=0.0, lt=1.0)]
    duration_s: Share | None
    window_s: Share | None
    windows_per_query: Share | None
    words_per_query: Share | None
    unknown_words: Share | None
    features: NonNegative | None
    videos: Count


class RetrainSettings(Section):
    """When new data are accepted.

    Attributes:
        max_bad_share: maximum fraction of invalid rows in a delivery.
        max_files, max_gb: of a delivery; its tables and videos count, in units of 1e9 bytes.
        attempts: retrainings with a delivery that may fail; the last of them is with it alone.
        drift: limits of drift.
    """

    max_bad_share: Share
    max_files: Count = 10_000
    max_gb: Positive = 100.0
    attempts: Annotated[int, Field(ge=2, le=100)] = 3
    drift: DriftSettings


class Config(Section):
    """params.yaml."""

    seed: Seed
    corpus: CorpusSettings
    features: FeatureSettings
    intervid: IntervidSettings
    video_captions: VideoCaptionSettings | None = None
    models: dict[ModelName, dict[str, Any]]
    train: TrainSettings
    postprocess: PostprocessConfig
    evaluate: EvaluateSettings
    tracking: TrackingSettings
    orchestrate: OrchestrateSettings
    promotion: PromotionSettings
    retrain: RetrainSettings
    tune: TuneSettings

    def model_settings(self, model: str, run: str) -> dict[str, Any]:
        """Settings of a model in a run (``pretrain``, ...), which may have weights of its own."""
        settings, own = self.models[model], getattr(self.train, run).loss
        return settings if own is None else settings | {"loss": settings.get("loss", {}) | own}


# The sections of `train` that describe a training.
RUNS = ("pretrain", "finetune", "scratch")


def load_config(path: Path) -> Config:
    """Read and validate a parameter file.

    Raises:
        ConfigError: the first mistake found, with its dotted path.
        DataError: the file is not UTF-8 text, or not valid YAML.
    """
    return parse_config(_sections(path))


def load_features(path: Path) -> FeatureSettings:
    """Read the section `features` alone, for which no model is imported; see `load_config`."""
    return validate_section(FeatureSettings, _sections(path).get("features"), "features")


def load_protocol(path: Path, folder: Path) -> str | None:
    """Read ``evaluate.protocol`` alone, if the corpus comes from `folder`; see `load_features`."""
    sections = _sections(path)
    corpus = validate_section(CorpusSettings, sections.get("corpus"), "corpus")
    if corpus.source != "folder" or (path.parent / corpus.folder).resolve() != folder.resolve():
        return None
    return validate_section(EvaluateSettings, sections.get("evaluate"), "evaluate").protocol


def _sections(path: Path) -> dict[str, Any]:
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        rule = "no such file; run from the repository root or `mrmodel preset apply sample`"
        raise ConfigError(str(path), None, rule) from None
    if not isinstance(raw, dict):
        raise ConfigError(str(path), raw, "expected a mapping of sections")
    return raw


# Keys of earlier versions that moved to the section `postprocess`.
_MOVED = ("evaluate.round_to_clips", "evaluate.nms_iou", "evaluate.max_windows")
# Settings of SG-DETR before it followed the published code.
_REPLACED = tuple(
    f"models.sg_detr.{name}"
    for name in (
        "infer", "drop", "use_tef", "local", "pool", "sgca", "encoder", "gsm", "detector", "qs",
        "decoder", "dn", "atss", "aux",
    )
)  # fmt: skip


# Old name -> new name; `*` is any one key.
_RENAMED = {
    "train.decay": "train.weight_decay_on",
    "train.*.drop_every_epochs": "train.*.step_size",
    "evaluate.zero_shot_sd": "evaluate.zero_shot_std",
    "intervid.labels.threshold_sd": "intervid.labels.threshold_std",
    "retrain.drift.chance": "retrain.drift.significance_level",
}


def parse_config(raw: dict[str, Any]) -> Config:
    """Validate a parameter tree; see `load_config`."""
    moved = [path for path in (*_MOVED, *_REPLACED) if _has(raw, path.split("."))]
    moved += [
        f"{old} (now {new.rpartition('.')[2]})"
        for old, new in _RENAMED.items()
        if _has(raw, old.split("."))
    ]
    if moved:
        rule = "moved, renamed or replaced; docs/howto/upgrade.md shows what to write"
        raise ConfigError(", ".join(moved), {}, rule)
    config = validate_section(Config, raw)
    _check_names(config)
    _check_intervid(config)
    return config


def _has(tree: Any, path: list[str]) -> bool:
    for index, part in enumerate(path):
        if not isinstance(tree, dict):
            return False
        if part == "*":
            return any(_has(below, path[index + 1 :]) for below in tree.values())
        if part not in tree:
            return False
        tree = tree[part]
    return True


def _settings_of(model: str) -> type[Section]:
    found: type[Section] = (
        MODEL_SETTINGS.get(model) if model in MODEL_SETTINGS else MODELS.get(model).Settings
    )
    return found


def _check_names(config: Config) -> None:
    for name in config.train.models:
        if name not in config.models:
            near = nearest_names(name, config.models)
            raise ConfigError("train.models", name, "has no section under `models`", near)
    for name, settings in config.models.items():
        _known(f"models.{name}", MODELS, name)
        model = validate_section(_settings_of(name), settings, f"models.{name}")
        _check_token_positions(config.features.max_tokens, model, f"models.{name}.max_tokens")
    for name, run in product(config.train.models, RUNS):
        where = f"train.{run}, models.{name}"
        validate_section(_settings_of(name), config.model_settings(name, run), where)
    if not config.features.has_imports:
        for field in ("video_streams", "text_streams"):
            for name in getattr(config.features, field):
                _known(f"features.{field}", ENCODERS, name)
    elif config.orchestrate.extract_shards.count > 1:
        rule = "imported features are not extracted, so there is nothing to spread: set it to 1"
        count = config.orchestrate.extract_shards.count
        raise ConfigError("orchestrate.extract_shards.count", count, rule)
    _known("evaluate.protocol", PROTOCOLS, config.evaluate.protocol)
    tuned = config.tune.model
    if tuned is not None and tuned not in config.models:
        near = nearest_names(tuned, config.models)
        raise ConfigError("tune.model", tuned, "has no section under `models`", near)


def _check_token_positions(tokens: int, model: Any, path: str) -> None:
    """A model with learned positions must have one for every token."""
    positions = getattr(model, "max_tokens", tokens)
    if getattr(model, "text_positions", False) and tokens > positions:
        rule = f"text_positions needs at least features.max_tokens of them, which is {tokens}"
        raise ConfigError(path, positions, rule)


def _check_intervid(config: Config) -> None:
    settings, clip_len_s = config.intervid, config.features.clip_len_s
    for path, value, promised in settings.broken_promises():
        rule = f"preset {settings.preset!r} has {promised!r}; set it so, or say `preset: custom`"
        raise ConfigError(f"intervid.{path}", value, rule)
    for name in settings.captions.benchmarks:
        _known("intervid.captions.benchmarks", DATASETS, name)
    # Segment names have one decimal and segments lie on the clip grid, so both must be exact.
    has_grid = abs(clip_len_s * 10 - round(clip_len_s * 10)) <= 1e-6
    if not has_grid and not _gives_sentences(config.features.text_streams[0]):
        return  # InterVid-MR cannot compare clips with captions, and its stage says so.
    if not has_grid:
        rule = "InterVid-MR names segments with one decimal: give a multiple of 0.1 s"
        raise ConfigError("features.clip_len_s", clip_len_s, rule)
    if round(settings.segment.length_s * 1000) % round(clip_len_s * 1000):
        rule = f"must be a whole number of clips of {clip_len_s:g} s"
        raise ConfigError("intervid.segment.length_s", settings.segment.length_s, rule)


def _gives_sentences(stream: str) -> bool:
    """Whether a text stream has vectors of whole sentences; of words that others look up: no."""
    layout: str = getattr(ENCODERS.get(stream), "layout", "") if stream in ENCODERS else ""
    return layout.startswith("sentence")


def _known(path: str, registry: Any, name: str) -> None:
    if name not in registry:
        error = UnknownNameError(registry.kind, name, registry)
        rule = f"is not a known {registry.kind} (known: {', '.join(sorted(registry))})"
        raise ConfigError(path, name, rule, error.nearest)
