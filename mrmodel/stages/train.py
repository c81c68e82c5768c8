"""Stages ``pretrain``, ``finetune`` and ``scratch``: the three trainings of the pipeline."""

from __future__ import annotations

from mrmodel.config.schema import Config
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_command
from mrmodel.stages.trainer import TrainingJob, train_model


def finetune(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``models/finetuned/<model>``; ``--model`` names one of ``train.models``."""
    paths, model = Paths(config), arguments["model"]
    job = TrainingJob(
        run="finetune",
        model=model,
        seed=config.seed,
        train=paths.split("train"),
        val=paths.split("val"),
        start=paths.model(config.train.start, model),
        out=paths.model("finetuned", model),
        figures=paths.training / f"finetune-{model}",
    )
    train_model(config, job, reporter)


def pretrain(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``models/pretrained/<model>``; ``--model`` names one of ``train.models``."""
    paths, model = Paths(config), arguments["model"]
    job = TrainingJob(
        run="pretrain",
        model=model,
        seed=config.seed,
        train=paths.intervid / "train.jsonl",
        val=paths.intervid / "val.jsonl",
        start=None,
        out=paths.model("pretrained", model),
        figures=paths.training / f"pretrain-{model}",
    )
    train_model(config, job, reporter)


def scratch(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``models/scratch/<model>``; ``--model`` names one of ``train.models``."""
    paths, model = Paths(config), arguments["model"]
    job = TrainingJob(
        run="scratch",
        model=model,
        seed=config.seed,
        train=paths.split("train"),
        val=paths.split("val"),
        start=None,
        out=paths.model("scratch", model),
        figures=paths.training / f"scratch-{model}",
    )
    train_model(config, job, reporter)


if __name__ == "__main__":
    run_command({stage.__name__: (stage, ("model",)) for stage in (pretrain, finetune, scratch)})
