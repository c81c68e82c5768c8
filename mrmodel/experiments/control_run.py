"""Shared by the runs of studies: model folders, the control run, test metrics.

The models and curves of a run are kept below ``.mrmodel/studies/``, so that DVC caches only the
metric files (see `mrmodel.experiments.tables`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrmodel.config.schema import Config
from mrmodel.data.annotations import read_annotations
from mrmodel.devices import pick_device
from mrmodel.evaluate.protocols import Scores
from mrmodel.files import read_json
from mrmodel.models.base import MomentModel
from mrmodel.predict.inference import predict_set, seconds_of_predictions
from mrmodel.progress import Reporter
from mrmodel.report.studies import REPORTS
from mrmodel.stages.paths import Paths
from mrmodel.stages.scorer import Scorer, reported_split
from mrmodel.stages.trainer import (
    TrainingJob,
    open_features,
    open_set,
    run_settings,
    train_model,
)
from mrmodel.train.checkpoint import load_model
from mrmodel.types import Prediction


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """Folder of the models and curves of one run of a study."""

    root: Path

    @classmethod
    def of(cls, paths: Paths, study: str, name: str) -> StudyFolder:
        """The folder of the run `name` of a study."""
        return cls(paths.state / "studies" / study / name)

    def model(self, kind: str) -> Path:
        """Model folder."""
        return self.root / kind

    def metrics_path(self, run: str) -> Path:
        """Path stem of the results and curves of a training."""
        return self.root / "training" / run


@dataclass(frozen=True, slots=True)
class ControlRun:
    """A training from scratch on the annotated queries alone, as `scratch` of the main job.

    `name` is the name of the run in the study, including its seed.
    """

    study: str
    name: str
    model: str
    seed: int

    def result(self) -> Path:
        """The result file of the run."""
        return REPORTS / self.study / f"{self.name}.json"


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model: its folder, values for the result file, and the seconds of its steps."""

    folder: Path
    facts: dict[str, Any]
    seconds: float


def with_steps(config: Config, steps: int, run: str = "scratch") -> Config:
    """`config` with `steps` as the length of its control run, or of another run."""
    # The rule of equal steps for the control is that of the main job, and does not apply.
    settings = run_settings(config, run).model_copy(update={"steps": steps, "epochs": None})
    train = config.train.model_copy(update={run: settings})
    return config.model_copy(update={"train": train})


def train_control(config: Config, run: ControlRun, reporter: Reporter) -> Trained:
    """Train the model of a run; resumes an interrupted training."""
    paths = Paths(config)
    folder = StudyFolder.of(paths, run.study, run.name)
    job = TrainingJob(
        run="scratch",
        model=run.model,
        seed=run.seed,
        train=paths.split("train"),
        val=paths.split("val"),
        start=None,
        out=folder.model("scratch"),
        metrics_path=folder.metrics_path("scratch"),
        label=f"{run.study}-{run.name}",
    )
    progress = train_model(config, job, reporter)
    training = read_json(job.metrics_path.with_suffix(".json"))
    facts = {
        "model": run.model,
        "corpus": config.corpus.name,
        "steps": training["steps"],
        "parameters": training["parameters"],
    }
    return Trained(job.out, facts, progress.seconds)


class EvaluationSet:
    """Annotated samples with their features (`data`) and their scorer.

    `headline` is the metric that selects models.

    Args:
        config: all settings.
        paths: locations of the features.
        file: the annotation file.
    """

    def __init__(self, config: Config, paths: Paths, file: Path) -> None:
        self._device, self._scorer = pick_device(config.train.device), Scorer(config)
        self._batch_size = config.train.eval_batch_size
        self._postprocess = self._scorer.postprocess(config.postprocess)
        truth = read_annotations(file, config.features.clip_len_s)
        self._truth = [row.as_row() for row in truth]
        self.headline = self._scorer.protocol.headline
        self.data = open_set(config, truth, open_features(config, paths, self._device), config.seed)

    def model(self, folder: Path) -> MomentModel:
        """The model of a model folder, on the device of the split's features."""
        model, _ = load_model(folder, self._device)
        return model

    def answers(self, model: MomentModel) -> list[Prediction]:
        """Predictions of a model for all samples."""
        return predict_set(model, self.data, self._batch_size, self._postprocess)

    def seconds(self, model: MomentModel) -> float:
        """Seconds of forward pass and decoding for all samples, see `seconds_of_predictions`."""
        return seconds_of_predictions(model, self.data, self._batch_size, self._postprocess)

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """All metrics of predictions for its samples, and the per-query values."""
        return self._scorer.score(self._truth, [prediction.as_row() for prediction in predictions])

    def main_metrics(self, scores: Scores) -> dict[str, float]:
        """The main metrics, the headline first."""
        return self._scorer.main_metrics(scores)

    def main_metrics_of(self, folder: Path) -> dict[str, float]:
        """Main metrics of the model in a model folder."""
        return self.main_metrics(self.score(self.answers(self.model(folder))))


class ReportedSplit(EvaluationSet):
    """The split that metrics are reported on."""

    def __init__(self, config: Config, paths: Paths) -> None:
        super().__init__(config, paths, paths.split(reported_split(paths)))
