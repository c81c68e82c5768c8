"""Stage ``pretrain``: each model on the queries that InterVid-MR generation made."""

from __future__ import annotations

from mrmodel.config import Config
from mrmodel.pipeline.layout import Layout
from mrmodel.pipeline.stage import run_stage_with
from mrmodel.pipeline.training import Job, train_model
from mrmodel.progress import Reporter


def pretrain(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``models/pretrained/<model>``; ``--model`` names one of ``train.models``."""
    layout, model = Layout(config), arguments["model"]
    job = Job(
        run="pretrain",
        model=model,
        seed=config.seed,
        train=layout.intervid / "train.jsonl",
        val=layout.intervid / "val.jsonl",
        start=None,
        out=layout.model("pretrained", model),
        figures=layout.training / f"pretrain-{model}",
    )
    train_model(config, job, reporter)


if __name__ == "__main__":
    run_stage_with(pretrain, ("model",))
