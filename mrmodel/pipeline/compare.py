"""Study ``compare``: all models at equal steps, what they cost, and whether they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mrmodel.config import Config
from mrmodel.errors import DataError
from mrmodel.evaluate.per_query import PerQuery
from mrmodel.evaluate.significance import BootstrapSettings, bootstrap_over_seeds
from mrmodel.files import write_json, write_text
from mrmodel.pipeline.stage import run_stage
from mrmodel.pipeline.study_tables import (
    DIFFERENCE,
    REPORTS,
    Runs,
    all_figures,
    cell,
    commit_sentences,
    difference_cells,
    made_with,
    markdown_page,
    mean_and_sd,
    number_of_seeds,
    runs_of,
    shared_values,
    table_of_figures,
)
from mrmodel.progress import Reporter
from mrmodel.report.build import Table

RESULT = REPORTS / "compare.json"

# The figures of the first table and their names there, in percent with one decimal, which is what
# the deviations allow; of another protocol, its first five.
SHOWN = {
    "MR-full-mAP": "mAP",
    "MR-full-R1@0.5": "R1@0.5",
    "MR-full-R1@0.7": "R1@0.7",
    "HL-min-VeryGood-mAP": "HL mAP",
    "HL-min-VeryGood-Hit1": "HL Hit@1",
}
COSTS = ("training_seconds", "queries_per_second")


def compare(config: Config, reporter: Reporter) -> None:
    """Write ``studies/reports/compare.json`` and ``compare.md``."""
    settings = BootstrapSettings(resamples=config.evaluate.bootstrap_resamples, seed=config.seed)
    table = summarise(runs_of("compare"), config.train.models[0], settings) | made_with()
    write_json(RESULT, table)
    write_text(RESULT.with_suffix(".md"), markdown_page(sentences(table), grids(table)))


def summarise(runs: Runs, default: str, settings: BootstrapSettings) -> dict[str, Any]:
    """The table: what all runs share, a row a model, and each model's difference to the default.

    Rows are in the order of the headline figure, the best first.

    Args:
        runs: the results of ``compare_run``, of each seed, by model.
        default: the model that the others are compared with.
        settings: of the bootstrap.

    Raises:
        DataError: there are no runs, none of the default model, or runs of different corpora,
            figures, numbers of steps, queries, devices or threads; or seeds of a model differ in
            its size.
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
    order = sorted(rows, key=lambda name: -_mean(rows[name], headline))
    queries = {name: [_per_query(run, headline) for run in runs[name]] for name in order}
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


def _per_query(run: Mapping[str, Any], headline: str) -> PerQuery:
    queries = run["queries"]
    values = np.array(queries["values"], dtype=np.float64)  # null becomes NaN
    return PerQuery(queries["qids"], queries["vids"], {headline: values})


def sentences(table: Mapping[str, Any]) -> list[str]:
    """What was run, the order of the models, and which of them differ from the default model."""
    rows, headline, default = table["rows"], table["headline"], table["default"]
    words = [
        f"Corpus {table['corpus']}, {table['steps']} steps from fresh weights on the annotated "
        f"queries, each model at its size in params.yaml, scored on the reported split; mean ± "
        f"standard deviation over {number_of_seeds(rows)} seeds.",
        f"Order by {headline}: {', '.join(rows)}.",
    ]
    words += commit_sentences(table)
    verdicts: dict[str, list[str]] = {}
    for name, found in table["differences"].items():
        clear = "better" if found["low"] > 0 else "worse" if found["high"] < 0 else None
        verdicts.setdefault(clear or "no clear difference", []).append(name)
    if verdicts:
        shown = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items())
        words.append(f"Beside {default}, by the 95 % interval of the difference: {shown}.")
    return words


def grids(table: Mapping[str, Any]) -> list[Table]:
    """Figures and costs; differences to the default model; all figures."""
    strong = list(table["rows"]).index(table["default"])
    first = _figures_and_costs(table, strong)
    return [first, _differences(table), table_of_figures(table["rows"], strong)]


def _figures_and_costs(table: Mapping[str, Any], strong: int) -> Table:
    figures = all_figures(table["rows"])
    shown, decimals = {name: SHOWN[name] for name in figures if name in SHOWN}, 1
    if not shown:
        shown, decimals = {name: name for name in figures[:5]}, 2
    rows = [
        [
            name,
            *(cell(row["figures"].get(figure), decimals) for figure in shown),
            f"{row['parameters']:,}",
            *(cell(row["costs"][cost], 0) for cost in COSTS),
        ]
        for name, row in table["rows"].items()
    ]
    caption = (
        "Figures in percent, and what they cost. Training: seconds of the steps alone, without "
        "loading and validation. Queries a second: forward pass and decoding of windows, without "
        f"loading. Both are of the machine that ran the study ({_machine(table)}) and compare "
        "within this table only."
    )
    columns = ["", *shown.values(), "parameters", "training s", "queries/s"]
    return Table(caption, columns, rows, strong)


def _differences(table: Mapping[str, Any]) -> Table:
    default = table["default"]
    rows = [
        [f"{name} − {default}", *difference_cells(found)]
        for name, found in table["differences"].items()
    ]
    caption = (
        f"Difference in {table['headline']} to {default}: {table['resamples']:,} bootstrap "
        "resamples of whole videos, the same for both models, and of each model's seeds."
    )
    return Table(caption, ["", *DIFFERENCE], rows)


def _machine(table: Mapping[str, Any]) -> str:
    threads = table["threads"]
    count = f"{threads} thread{'s' if threads > 1 else ''}"
    return count if table["device"] == "cpu" else f"{table['device']}, {count}"


def _mean(row: Mapping[str, Any], figure: str) -> float:
    return float(row["figures"][figure]["mean"])


if __name__ == "__main__":
    run_stage(compare)
