"""Stage ``finetune``: go on from pre-trained or imported weights with the annotated queries."""

from __future__ import annotations

from mrmodel.config import Config
from mrmodel.pipeline.layout import Layout
from mrmodel.pipeline.stage import run_stage_with
from mrmodel.pipeline.training import Job, train_model
from mrmodel.progress import Reporter


def finetune(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``models/finetuned/<model>``; ``--model`` names one of ``train.models``."""
    layout, model = Layout(config), arguments["model"]
    job = Job(
        run="finetune",
        model=model,
        seed=config.seed,
        train=layout.split("train"),
        val=layout.split("val"),
        start=layout.model(config.train.start, model),
        out=layout.model("finetuned", model),
        figures=layout.training / f"finetune-{model}",
    )
    train_model(config, job, reporter)


if __name__ == "__main__":
    run_stage_with(finetune, ("model",))
