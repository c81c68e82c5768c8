"""Stages ``pretrain``, ``finetune`` and ``scratch``: the three trainings of the main job."""

from __future__ import annotations

from pathlib import Path

from mrmodel.config.schema import Config
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_command
from mrmodel.stages.trainer import TrainingJob, pretraining_files, train_model


def pretrain(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Train fresh weights on `pretraining_files`; writes ``models/pretrained/<model>``."""
    files = pretraining_files(Paths(config))
    _train(config, reporter, arguments["model"], ("pretrain", "pretrained"), files)


def finetune(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Train the weights of `train.start` on the annotated queries; ``models/finetuned/<model>``."""
    start = Paths(config).model(config.train.start, arguments["model"])
    files = _annotated(config)
    _train(config, reporter, arguments["model"], ("finetune", "finetuned"), files, start)


def scratch(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """The control: fresh weights on the annotated queries; writes ``models/scratch/<model>``."""
    _train(config, reporter, arguments["model"], ("scratch", "scratch"), _annotated(config))


def _annotated(config: Config) -> tuple[Path, Path]:
    paths = Paths(config)
    return paths.split("train"), paths.split("val")


def _train(
    config: Config,
    reporter: Reporter,
    model: str,
    names: tuple[str, str],
    files: tuple[Path, Path],
    start: Path | None = None,
) -> None:
    """Train `model`; `names` are those of the run and of the kind of weights it makes."""
    paths, (run, kind), (train, val) = Paths(config), names, files
    job = TrainingJob(
        run=run,
        model=model,
        seed=config.seed,
        train=train,
        val=val,
        start=start,
        out=paths.model(kind, model),
        metrics_path=paths.training / f"{run}-{model}",
    )
    train_model(config, job, reporter)


if __name__ == "__main__":
    run_command({stage.__name__: (stage, ("model",)) for stage in (pretrain, finetune, scratch)})
