"""Study ``ablation_run``: one preset trained from fresh weights for a fixed number of steps.

A row of the ablation table is a preset: its changes are laid over params.yaml, so that all rows
share the size and the data of the main job.
"""

from __future__ import annotations

import json

from mrmodel import presets
from mrmodel.config import Config, parse_config
from mrmodel.files import write_json
from mrmodel.pipeline.layout import Layout
from mrmodel.pipeline.stage import run_stage_with
from mrmodel.pipeline.study import REPORTS, ReportedSplit, StudyFolder
from mrmodel.pipeline.training import Job, train_model
from mrmodel.progress import Reporter


def ablation_run(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/ablation/<preset>-<seed>.json``: settings, size and test figures."""
    preset, seed, steps = arguments["preset"], int(arguments["seed"]), int(arguments["steps"])
    config = config_of_row(config, preset, steps)
    layout, model = Layout(config), config.train.models[0]
    folder = StudyFolder(layout.state / "studies" / "ablation" / f"{preset}-{seed}")
    job = Job(
        run="scratch",
        model=model,
        seed=seed,
        train=layout.split("train"),
        val=layout.split("val"),
        start=None,
        out=folder.model("scratch"),
        figures=folder.figures("scratch"),
        label=f"{preset}-{seed}",
    )
    train_model(config, job, reporter)
    training = json.loads(job.figures.with_suffix(".json").read_text(encoding="utf-8"))
    test = ReportedSplit(config, layout)
    result = {
        "model": model,
        "settings": config.models[model],
        "corpus": config.corpus.name,
        "headline": test.headline,
        "steps": training["steps"],
        "parameters": training["parameters"],
        "figures": test.figures_of(job.out),
    }
    write_json(REPORTS / "ablation" / f"{preset}-{seed}.json", result)


def config_of_row(config: Config, preset: str, steps: int) -> Config:
    """`config` with the changes of a preset; its control run takes `steps`.

    Raises:
        UnknownNameError: no such preset.
        ConfigError: the changes do not fit `config`.
    """
    raw = config.model_dump()
    presets.merge(raw, presets.changes(preset))
    config = parse_config(raw)
    # Nothing is pre-trained here, so the rule of equal steps for the control does not apply.
    scratch = config.train.scratch.model_copy(update={"steps": steps, "epochs": None})
    train = config.train.model_copy(update={"scratch": scratch})
    return config.model_copy(update={"train": train})


if __name__ == "__main__":
    run_stage_with(ablation_run, ("preset", "seed", "steps"))
