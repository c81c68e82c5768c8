"""Stage ``scratch``: the control, fresh weights on the annotated queries alone."""

from __future__ import annotations

from mrmodel.config import Config
from mrmodel.pipeline.layout import Layout
from mrmodel.pipeline.stage import run_stage_with
from mrmodel.pipeline.training import Job, train_model
from mrmodel.progress import Reporter


def scratch(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``models/scratch/<model>``; ``--model`` names one of ``train.models``."""
    layout, model = Layout(config), arguments["model"]
    job = Job(
        run="scratch",
        model=model,
        seed=config.seed,
        train=layout.split("train"),
        val=layout.split("val"),
        start=None,
        out=layout.model("scratch", model),
        figures=layout.training / f"scratch-{model}",
    )
    train_model(config, job, reporter)


if __name__ == "__main__":
    run_stage_with(scratch, ("model",))
