"""Training shared by ``pretrain``, ``finetune`` and ``scratch``: data in, model folder out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from mrmodel.components import MODELS
from mrmodel.config.base import validate_section
from mrmodel.config.schema import PER_RUN, Config, RunSettings, TargetRules
from mrmodel.data.annotations import MAX_PRETRAINING_RATING, MAX_RATING
from mrmodel.data.loader import BatchBuilder, LoaderSettings, MomentDataset, RowLimits
from mrmodel.data.targets import TargetSettings
from mrmodel.devices import pick_device
from mrmodel.errors import UnknownNameError
from mrmodel.features.store import FeatureStore
from mrmodel.files import (
    atomic_path,
    derive_seed,
    digest_of,
    replaced_folder,
    sha256_of,
    write_json,
)
from mrmodel.models.base import MomentModel
from mrmodel.predict.inference import predict_set
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.scorer import Scorer, read_rows_if_any
from mrmodel.tracking.run import TrackedRun, current_run
from mrmodel.tracking.stage_metrics import record_training
from mrmodel.train.checkpoint import (
    CONFIG,
    WEIGHTS,
    ModelConfig,
    ModelStream,
    load_start,
    save_model,
)
from mrmodel.train.loop import Plan, Progress, Recorder, fit
from mrmodel.types import Annotation
from mrmodel.version import PACKAGE

log = logging.getLogger(__name__)

# Packages whose code invalidates a resume state: mixing versions would not be reproducible.
_CODE = ("data", "features", "losses", "models", "train")


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One training: model, data, initial weights and outputs.

    Attributes:
        run: ``pretrain``, ``finetune`` or ``scratch``: the section below `train`.
        model: name below `models`.
        seed: seed of all random draws.
        train, val: annotation files; if `val` is empty there is no validation.
        start: model folder of the initial weights, None = random initialisation.
        out: model folder to write.
        metrics_path: results are written to ``<metrics_path>.json``, curves to ``.csv``.
        label: name of the run in a study; None in the main job.
    """

    run: str
    model: str
    seed: int
    train: Path
    val: Path
    start: Path | None
    out: Path
    metrics_path: Path
    label: str | None = None

    @property
    def name(self) -> str:
        """Name for display and for folders."""
        return f"{self.label or self.run}@{self.model}"


def train_model(
    config: Config, job: TrainingJob, reporter: Reporter, watch: Recorder | None = None
) -> Progress:
    """Train and write the model folder, metrics and curves; resumes an interrupted training.

    The training time is returned but not written to a file: outputs are reproducible.

    Args:
        config: all settings.
        job: the training.
        reporter: notified of every step.
        watch: notified of every epoch, after tracking; it may raise `StoppedEarly`.

    Raises:
        UnknownNameError: there are no settings of the model.
    """
    if job.model not in config.models:
        raise UnknownNameError("section of `models` in params.yaml", job.model, config.models)
    models = {job.model: config.model_settings(job.model, job.run)}
    train = config.train.for_run(job.run)
    config = config.model_copy(update={"train": train, "models": models})
    paths = Paths(config)
    device = pick_device(config.train.device)
    builder = open_features(config, paths, device)
    model_config = describe_model(config, job, builder)
    torch.manual_seed(derive_seed(job.seed, "weights", job.model))
    model = model_config.build()
    if job.start is not None:
        load_start(model, job.start, model_config)
    clip_len_s = config.features.clip_len_s
    max_rating = MAX_PRETRAINING_RATING if job.run == "pretrain" else MAX_RATING
    train_rows = read_rows_if_any(job.train, clip_len_s, max_rating)
    val_rows = read_rows_if_any(job.val, clip_len_s)
    if not train_rows:
        log.warning("%s: %s has no row; the first weights are the result", job.name, job.train)
        progress = Progress()
        _write(job, model, model_config, progress)
        return progress

    rules = run_settings(config, job.run).targets
    data = open_set(config, train_rows, builder, job.seed, rules)
    data.host_inputs = model.host_inputs
    resume = paths.resume(job.name, _digest_of_inputs(config, job, model_config))
    plan = Plan(config.train, run_settings(config, job.run), job.seed, resume / "state.pt")
    with current_run().child_run(job.name) as record:
        _record_settings(record, config, job)
        validate = Validation(config, val_rows, builder) if val_rows else None
        recorder = record if watch is None else _Both(record, watch)
        progress = fit(model, data, plan, validate, (recorder, reporter))
        _write(job, model, model_config, progress)
        record_training(record, job.metrics_path)
    shutil.rmtree(resume, ignore_errors=True)
    return progress


class _Both:
    """Two recorders as one."""

    def __init__(self, first: Recorder, second: Recorder) -> None:
        self._recorders = first, second

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log to both."""
        for recorder in self._recorders:
            recorder.log(metrics, step)


def pretraining_sets(paths: Paths) -> list[tuple[Path, Path]]:
    """The sets that the run ``pretrain`` may train on and validate with, the preferred one first.

    Rows that the user brings, captioned frames, then InterVid-MR.
    """
    generated = (paths.video_captions, paths.intervid)
    return [
        (paths.split("pretrain"), paths.split("pretrain_val")),
        *((folder / "train.jsonl", folder / "val.jsonl") for folder in generated),
    ]


def pretraining_files(paths: Paths) -> tuple[Path, Path]:
    """The first of `pretraining_sets` with a row to train on, or else the last of them."""
    *preferred, last = pretraining_sets(paths)
    has_rows = (files for files in preferred if files[0].exists() and files[0].stat().st_size)
    return next(has_rows, last)


def run_settings(config: Config, run: str) -> RunSettings:
    """The section of a run below `train`."""
    settings: RunSettings = getattr(config.train, run)
    return settings


def open_features(config: Config, paths: Paths, device: torch.device) -> BatchBuilder:
    """A batch builder over the feature stores of the corpus."""
    return BatchBuilder(
        [FeatureStore(paths.stream(name)) for name in config.features.video_streams],
        [FeatureStore(paths.stream(name)) for name in config.features.text_streams],
        RowLimits(config.features.max_clips, config.features.max_tokens),
        device,
    )


def open_set(
    config: Config,
    rows: Sequence[Annotation],
    builder: BatchBuilder,
    seed: int,
    rules: TargetRules | None = None,
) -> MomentDataset:
    """Annotations with their features; `rules` are those of a run's targets."""
    chosen = {} if rules is None else rules.model_dump()
    targets = TargetSettings(config.train.max_windows, **chosen)
    return MomentDataset(rows, builder, LoaderSettings(config.train.batch_size, seed, targets))


def describe_model(config: Config, job: TrainingJob, builder: BatchBuilder) -> ModelConfig:
    """config.json of the model folder, without the results.

    Raises:
        ConfigError: the model's settings do not support these feature streams.
    """
    MODELS.get(job.model).check_streams(
        config.models[job.model],
        [stream.dim for stream in builder.video],
        [stream.dim for stream in builder.text],
    )
    return ModelConfig(
        model=job.model,
        settings=config.models[job.model],
        video_streams=_streams(builder.video),
        text_streams=_streams(builder.text),
        clip_len_s=config.features.clip_len_s,
        max_clips=config.features.max_clips,
        max_tokens=config.features.max_tokens,
        protocol=config.evaluate.protocol,
        training={"run": job.run, "seed": job.seed, "corpus": config.corpus.name},
    )


class Validation:
    """Metrics of a model on annotated samples, the headline first."""

    def __init__(self, config: Config, rows: Sequence[Annotation], builder: BatchBuilder) -> None:
        self._scorer = Scorer(config)
        self._batch_size = config.train.eval_batch_size
        self._truth = [row.as_row() for row in rows]
        self._data = open_set(config, rows, builder, seed=0)

    def __call__(self, model: MomentModel) -> dict[str, float]:
        """Predict all samples and score them."""
        postprocess = self._scorer.postprocess(model.validation)
        found = predict_set(model, self._data, self._batch_size, postprocess)
        rows = [prediction.as_row() for prediction in found]
        return self._scorer.main_metrics(self._scorer.score(self._truth, rows))


def _streams(stores: Sequence[object]) -> tuple[ModelStream, ...]:
    infos = [store.info for store in stores if isinstance(store, FeatureStore)]
    return tuple(ModelStream(info.stream, info.dim, digest_of(info.fingerprint)) for info in infos)


def _digest_of_inputs(config: Config, job: TrainingJob, model: ModelConfig) -> str:
    files = [job.train, job.val]
    if job.start is not None:
        files.append(job.start / "model.safetensors")
    files += sorted(file for part in _CODE for file in (PACKAGE / part).rglob("*.py"))
    settings = config.train.model_dump(exclude={"models", "pretrain", "finetune", "scratch"})
    streams = (*model.video_streams, *model.text_streams)
    return digest_of(
        {
            "settings": settings,
            "judge": [config.evaluate.protocol, config.evaluate.mode],
            "run": run_settings(config, job.run).model_dump(),
            "seed": job.seed,
            "model": [model.model, model.settings],
            "streams": [stream.fingerprint for stream in streams],
            "files": [sha256_of(file) for file in files],
        }
    )


def _record_settings(record: TrackedRun, config: Config, job: TrainingJob) -> None:
    """Log the settings of the training, including all values that come from a preset."""
    settings = MODELS.get(job.model).Settings
    model = validate_section(settings, config.models[job.model], f"models.{job.model}")
    run = run_settings(config, job.run).model_dump()
    run |= {key: getattr(config.train, key) for key in PER_RUN}
    record.params({"model": model.model_dump(), "run": run, "seed": job.seed})


def _write(job: TrainingJob, model: MomentModel, config: ModelConfig, progress: Progress) -> None:
    validated = [row for row in progress.history if validation_of(row)]
    best = [row for row in validated if row["step"] == progress.best_step]
    shown = {
        "parameters": sum(value.numel() for value in model.parameters()),
        "steps": progress.step,
        "best_step": progress.best_step,
        "last": validation_of(validated[-1]) if validated else {},
        "best": validation_of(best[0]) if best else {},
    }
    write_json(job.metrics_path.with_suffix(".json"), shown)
    with atomic_path(job.metrics_path.with_suffix(".csv")) as temporary:
        columns = None if progress.history else ["step", "train/loss"]
        pd.DataFrame(progress.history, columns=columns).to_csv(temporary, index=False)
    with replaced_folder(job.out, WEIGHTS, CONFIG, ".*.tmp") as folder:
        save_model(folder, model, config)


def validation_of(row: Mapping[str, float]) -> dict[str, float]:
    """The validation metrics in a row of the training history; empty if there was none."""
    return {key.removeprefix("val/"): value for key, value in row.items() if key.startswith("val/")}
