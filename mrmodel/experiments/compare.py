"""Study ``compare``: all models with equal steps, their costs, and whether they differ.

Each model has its size from params.yaml and trains from scratch for a fixed number of steps.
Besides its metrics, a run records its costs and per-query metrics, for significance tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mrmodel.config.schema import Config
from mrmodel.devices import pick_device
from mrmodel.errors import ConfigError, DataError, nearest_names
from mrmodel.evaluate.significance import BootstrapSettings, bootstrap_over_seeds
from mrmodel.experiments.control_run import ControlRun, ReportedSplit, train_control, with_steps
from mrmodel.experiments.tables import (
    Runs,
    made_with,
    mean_and_sd,
    per_query_of,
    queries_of,
    runs_of,
    shared_values,
)
from mrmodel.files import write_json, write_text
from mrmodel.models.base import MomentModel
from mrmodel.progress import Reporter
from mrmodel.report.studies import (
    COMPARISON,
    COSTS,
    REPORTS,
    comparison_sentences,
    comparison_tables,
    markdown_page,
    mean_of,
)
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_command


def compare(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/compare.json`` and ``compare.md``."""
    settings = BootstrapSettings(resamples=config.evaluate.bootstrap_resamples, seed=config.seed)
    table = comparison_table(runs_of("compare"), config.train.models[0], settings) | made_with()
    write_json(COMPARISON, table)
    write_text(
        COMPARISON.with_suffix(".md"),
        markdown_page(comparison_sentences(table), comparison_tables(table)),
    )


def comparison_table(runs: Runs, default: str, settings: BootstrapSettings) -> dict[str, Any]:
    """The table: shared values, a row per model, and each model's difference to the default.

    Rows are ordered by the headline metric, best first.

    Args:
        runs: the results of ``compare_run`` by model, one per seed.
        default: the model that the others are compared with.
        settings: of the bootstrap.

    Raises:
        DataError: there are no runs, or none of the default model; corpora, metrics, numbers of
            steps, queries, devices or threads differ; or the size of a model differs between seeds.
    """
    shared = shared_values("compare", runs, ("corpus", "headline", "steps", "device", "threads"))
    if default not in runs:
        rule = (
            f"no run of {default!r}, the first of train.models, which the others are compared "
            f"with (runs: {', '.join(runs)}); name it in `compare.models` of studies/params.yaml"
        )
        raise DataError(rule, file=REPORTS / "compare")
    headline = shared["headline"]
    rows = {name: _row(name, of_seeds) for name, of_seeds in runs.items()}
    order = sorted(rows, key=lambda name: -mean_of(rows[name], headline))
    queries = {name: [per_query_of(run, headline) for run in runs[name]] for name in order}
    differences = {
        name: bootstrap_over_seeds(queries[default], queries[name], headline, settings).as_json()
        for name in order
        if name != default
    }
    return {
        **shared,
        "default": default,
        "rows": {name: rows[name] for name in order},
        "resamples": settings.resamples,
        "differences": differences,
    }


def _row(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **shared_values("compare", {name: runs}, ("parameters",)),
        "seeds": len(runs),
        "figures": mean_and_sd([run["figures"] for run in runs]),
        "costs": mean_and_sd([{name: run[name] for name in COSTS} for run in runs]),
    }


# Number of timed passes over the test split; the fastest is used.
PASSES = 5


def compare_run(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/compare/<model>-<seed>.json``: metrics, costs, per-query values."""
    model, seed = arguments["model"], int(arguments["seed"])
    if model not in config.models:
        near = nearest_names(model, config.models)
        raise ConfigError("compare.models", model, "has no section below `models`", near)
    config = with_steps(config, int(arguments["steps"]))
    run = ControlRun("compare", f"{model}-{seed}", model, seed)
    trained = train_control(config, run, reporter)
    test = ReportedSplit(config, Paths(config))
    network = test.model(trained.folder)
    scores = test.score(test.answers(network))
    result = {
        **trained.facts,
        "headline": test.headline,
        "figures": test.main_metrics(scores),
        "device": str(pick_device(config.train.device)),
        "threads": torch.get_num_threads(),
        "training_seconds": trained.seconds,
        "queries_per_second": queries_per_second(test, network),
        "queries": queries_of(scores.per_query, test.headline),
    }
    write_json(run.result(), result)


def queries_per_second(test: ReportedSplit, model: MomentModel) -> float:
    """Queries per second of forward pass and decoding; the model must be warmed up."""
    seconds = [test.seconds(model) for _ in range(PASSES)]
    return len(test.data) / min(seconds)


if __name__ == "__main__":
    run_command(
        {
            "table": (compare, ()),
            "run": (compare_run, ("model", "seed", "steps")),
        }
    )
