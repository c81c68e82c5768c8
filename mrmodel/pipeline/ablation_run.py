"""Study ``ablation_run``: one preset trained from fresh weights for a fixed number of steps.

A row of the ablation table is a preset: its changes are laid over params.yaml, so that all rows
share the size and the data of the main job.
"""

from __future__ import annotations

from mrmodel import presets
from mrmodel.config import Config, parse_config
from mrmodel.files import write_json
from mrmodel.pipeline.layout import Layout
from mrmodel.pipeline.stage import run_stage_with
from mrmodel.pipeline.study import ControlRun, ReportedSplit, train_control, with_steps
from mrmodel.progress import Reporter


def ablation_run(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/ablation/<preset>-<seed>.json``: settings, size and test figures."""
    preset, seed = arguments["preset"], int(arguments["seed"])
    config = config_of_row(config, preset, int(arguments["steps"]))
    model = config.train.models[0]
    run = ControlRun("ablation", f"{preset}-{seed}", model, seed)
    trained = train_control(config, run, reporter)
    test = ReportedSplit(config, Layout(config))
    result = {
        **trained.facts,
        "settings": config.models[model],
        "headline": test.headline,
        "figures": test.figures_of(trained.folder),
    }
    write_json(run.result(), result)


def config_of_row(config: Config, preset: str, steps: int) -> Config:
    """`config` with the changes of a preset; its control run takes `steps`.

    Raises:
        UnknownNameError: no such preset.
        ConfigError: the changes do not fit `config`.
    """
    raw = config.model_dump()
    presets.merge(raw, presets.changes(preset))
    return with_steps(parse_config(raw), steps)


if __name__ == "__main__":
    run_stage_with(ablation_run, ("preset", "seed", "steps"))
