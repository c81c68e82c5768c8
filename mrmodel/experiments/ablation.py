"""Study ``ablation``: the rows of SG-DETR's table 2 and the other models, with equal steps.

A row is a preset, trained from scratch for a fixed number of steps: its changes are merged into
params.yaml, so that all rows share the size and the data of the main job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrmodel import presets
from mrmodel.config.schema import Config, parse_config
from mrmodel.experiments.control_run import ControlRun, ReportedSplit, train_control, with_steps
from mrmodel.experiments.tables import (
    Runs,
    made_with,
    mean_and_sd,
    runs_of,
    shared_values,
)
from mrmodel.files import write_json, write_text
from mrmodel.progress import Reporter
from mrmodel.report.studies import (
    ABLATION,
    SWITCHES,
    ablation_sentences,
    ablation_tables,
    markdown_page,
    setting_at,
)
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_command


def ablation(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/ablation.json`` and ``ablation.md``."""
    table = ablation_table(runs_of("ablation")) | made_with()
    write_json(ABLATION, table)
    write_text(
        ABLATION.with_suffix(".md"),
        markdown_page(ablation_sentences(table), ablation_tables(table)),
    )


def ablation_table(runs: Runs) -> dict[str, Any]:
    """The table: shared values, and one row per preset with its switches and summary.

    Args:
        runs: the results of ``ablation_run`` by preset, one per seed.

    Raises:
        DataError: there are no runs, or their corpora, metrics or numbers of steps differ.
    """
    shared = shared_values("ablation", runs, ("corpus", "headline", "steps"))
    return {**shared, "rows": {name: _row(of_seeds) for name, of_seeds in runs.items()}}


def _row(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = runs[0]
    settings = first["settings"]
    is_sg = first["model"] == "sg_detr"
    return {
        "model": first["model"],
        "values": settings.get("preset", "robust") if is_sg else None,
        "switches": {name: setting_at(settings, name) for name in SWITCHES} if is_sg else {},
        "parameters": first["parameters"],
        "seeds": len(runs),
        "figures": mean_and_sd([run["figures"] for run in runs]),
    }


def ablation_run(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/ablation/<preset>-<seed>.json``: settings, size and test metrics."""
    preset, seed = arguments["preset"], int(arguments["seed"])
    config = config_of_row(config, preset, int(arguments["steps"]))
    model = config.train.models[0]
    run = ControlRun("ablation", f"{preset}-{seed}", model, seed)
    trained = train_control(config, run, reporter)
    test = ReportedSplit(config, Paths(config))
    result = {
        **trained.facts,
        "settings": config.models[model],
        "headline": test.headline,
        "figures": test.main_metrics_of(trained.folder),
    }
    write_json(run.result(), result)


def config_of_row(config: Config, preset: str, steps: int) -> Config:
    """`config` with the changes of a preset, and `steps` for its control run.

    Raises:
        UnknownNameError: no such preset.
        ConfigError: the changes do not fit `config`.
    """
    raw = config.model_dump()
    presets.merge(raw, presets.changes(preset))
    return with_steps(parse_config(raw), steps)


if __name__ == "__main__":
    run_command(
        {
            "table": (ablation, ()),
            "run": (ablation_run, ("preset", "seed", "steps")),
        }
    )
