"""What ``pretrain``, ``finetune`` and ``scratch`` share: data in, one model folder out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

import mrmodel
from mrmodel.components import MODELS
from mrmodel.config.base import validate_section
from mrmodel.config.schema import Config, RunSettings
from mrmodel.data.loader import BatchBuilder, LoaderSettings, MomentDataset, RowLimits
from mrmodel.data.targets import TargetSettings
from mrmodel.features.store import FeatureStore
from mrmodel.files import atomic_path, derive_seed, digest_of, sha256_of, write_json
from mrmodel.models.base import MomentModel
from mrmodel.predict.inference import predict_set
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.scorer import Scorer, read_rows_if_any
from mrmodel.tracking.run import TrackedRun, current_run
from mrmodel.tracking.stage_metrics import record_training
from mrmodel.train.checkpoint import ModelConfig, ModelStream, load_start, save_model
from mrmodel.train.loop import Plan, Progress, Recorder, fit
from mrmodel.train.optim import pick_device
from mrmodel.types import Annotation

log = logging.getLogger(__name__)

# A resume state of other code must not be continued: it would end in weights nobody can make again.
_CODE = ("data", "features", "losses", "models", "train")


@dataclass(frozen=True, slots=True)
class Job:
    """One training: which model, on what, from where, to where.

    Attributes:
        run: ``pretrain``, ``finetune`` or ``scratch``: the section below `train`.
        model: name below `models`.
        seed: of every random draw.
        train, val: annotation files; without a row in `val` nothing is validated.
        start: model folder of the first weights, None = fresh ones.
        out: model folder to write.
        figures: ``<figures>.json`` and ``<figures>.csv`` take the results and the curves.
        label: what a study calls the run; the main job has none.
    """

    run: str
    model: str
    seed: int
    train: Path
    val: Path
    start: Path | None
    out: Path
    figures: Path
    label: str | None = None

    @property
    def name(self) -> str:
        """For people and for folder names."""
        return f"{self.label or self.run}@{self.model}"


def train_model(
    config: Config, job: Job, reporter: Reporter, watch: Recorder | None = None
) -> Progress:
    """Train and write the model folder, the figures and the curves; continue if interrupted.

    The time that it took is in what it returns, and in no file: outputs are the same every time.

    Args:
        config: all settings.
        job: the training.
        reporter: told of every step.
        watch: told of every epoch, after the record; it may raise `StoppedEarly`.
    """
    paths = Paths(config)
    device = pick_device(config.train.device)
    builder = open_features(config, paths, device)
    model_config = describe_model(config, job, builder)
    torch.manual_seed(derive_seed(job.seed, "weights", job.model))
    model = model_config.build()
    if job.start is not None:
        load_start(model, job.start, model_config)
    clip_len_s = config.features.clip_len_s
    train_rows = read_rows_if_any(job.train, clip_len_s)
    val_rows = read_rows_if_any(job.val, clip_len_s)
    if not train_rows:
        log.warning("%s: %s has no row; the first weights are the result", job.name, job.train)
        progress = Progress()
        _write(job, model, model_config, progress)
        return progress

    data = open_set(config, train_rows, builder, job.seed)
    resume = paths.resume(job.name, _digest_of_inputs(config, job, model_config))
    plan = Plan(config.train, run_settings(config, job.run), job.seed, resume / "state.pt")
    with current_run().child_run(job.name) as record:
        _record_settings(record, config, job)
        validate = Validation(config, val_rows, builder) if val_rows else None
        recorder = record if watch is None else _Both(record, watch)
        progress = fit(model, data, plan, validate, (recorder, reporter))
        _write(job, model, model_config, progress)
        record_training(record, job.figures)
    shutil.rmtree(resume, ignore_errors=True)
    return progress


class _Both:
    """Two recorders as one."""

    def __init__(self, first: Recorder, second: Recorder) -> None:
        self._recorders = first, second

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Tell both."""
        for recorder in self._recorders:
            recorder.log(figures, step)


def run_settings(config: Config, run: str) -> RunSettings:
    """The section of a run."""
    settings: RunSettings = getattr(config.train, run)
    return settings


def open_features(config: Config, paths: Paths, device: torch.device) -> BatchBuilder:
    """The corpus' feature stores as a source of batches."""
    return BatchBuilder(
        [FeatureStore(paths.stream(name)) for name in config.features.video_streams],
        [FeatureStore(paths.stream(name)) for name in config.features.text_streams],
        RowLimits(config.features.max_clips, config.features.max_tokens),
        device,
    )


def open_set(
    config: Config, rows: Sequence[Annotation], builder: BatchBuilder, seed: int
) -> MomentDataset:
    """Annotations with their features."""
    targets = TargetSettings(max_windows=config.train.max_windows)
    return MomentDataset(rows, builder, LoaderSettings(config.train.batch_size, seed, targets))


def describe_model(config: Config, job: Job, builder: BatchBuilder) -> ModelConfig:
    """config.json of the model folder, but for the results.

    Raises:
        ConfigError: the model cannot read these feature streams as its settings say.
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
    """Figures of a model on annotated rows, the one that chooses first."""

    def __init__(self, config: Config, rows: Sequence[Annotation], builder: BatchBuilder) -> None:
        self._judge = Scorer(config)
        self._batch_size = config.train.eval_batch_size
        self._truth = [row.as_row() for row in rows]
        self._data = open_set(config, rows, builder, seed=0)

    def __call__(self, model: MomentModel) -> dict[str, float]:
        """Predict all rows and score them."""
        postprocess = self._judge.postprocess(model.validation)
        found = predict_set(model, self._data, self._batch_size, postprocess)
        rows = [prediction.as_row() for prediction in found]
        return self._judge.figures(self._judge.score(self._truth, rows))


def _streams(stores: Sequence[object]) -> tuple[ModelStream, ...]:
    infos = [store.info for store in stores if isinstance(store, FeatureStore)]
    return tuple(ModelStream(info.stream, info.dim, digest_of(info.fingerprint)) for info in infos)


def _digest_of_inputs(config: Config, job: Job, model: ModelConfig) -> str:
    files = [job.train, job.val]
    if job.start is not None:
        files.append(job.start / "model.safetensors")
    package = Path(mrmodel.__file__).parent
    files += sorted(file for child_run in _CODE for file in (package / child_run).rglob("*.py"))
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


def _record_settings(record: TrackedRun, config: Config, job: Job) -> None:
    """What decides the training, with every value that params.yaml leaves to a preset."""
    settings = MODELS.get(job.model).Settings
    model = validate_section(settings, config.models[job.model], f"models.{job.model}")
    run = run_settings(config, job.run)
    record.params({"model": model.model_dump(), "run": run.model_dump(), "seed": job.seed})


def _write(job: Job, model: MomentModel, config: ModelConfig, progress: Progress) -> None:
    validated = [row for row in progress.history if validation_of(row)]
    best = [row for row in validated if row["step"] == progress.best_step]
    shown = {
        "parameters": sum(value.numel() for value in model.parameters()),
        "steps": progress.step,
        "best_step": progress.best_step,
        "last": validation_of(validated[-1]) if validated else {},
        "best": validation_of(best[0]) if best else {},
    }
    write_json(job.figures.with_suffix(".json"), shown)
    with atomic_path(job.figures.with_suffix(".csv")) as temporary:
        columns = None if progress.history else ["step", "train/loss"]
        pd.DataFrame(progress.history, columns=columns).to_csv(temporary, index=False)
    save_model(job.out, model, config)


def validation_of(row: Mapping[str, float]) -> dict[str, float]:
    """The validation figures in a row of a training's history; empty where none was due."""
    return {key.removeprefix("val/"): value for key, value in row.items() if key.startswith("val/")}
