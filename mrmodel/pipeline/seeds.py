"""Study ``seeds``: mean and standard deviation over the seeds of every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mrmodel.config import Config
from mrmodel.files import write_json, write_text
from mrmodel.pipeline.stage import run_stage
from mrmodel.pipeline.study_tables import (
    REPORTS,
    Summary,
    cell,
    markdown_table,
    mean_and_sd,
    runs_of,
)
from mrmodel.progress import Reporter


def seeds(config: Config, reporter: Reporter) -> None:
    """Write ``studies/reports/seeds.json`` and ``seeds.md``."""
    runs = runs_of("seeds")
    table = {model: summarise(found) for model, found in runs.items()}
    write_json(REPORTS / "seeds.json", table)
    counts = {model: len(found) for model, found in runs.items()}
    write_text(REPORTS / "seeds.md", as_markdown(table, counts))


def summarise(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Summary]:
    """The summary of each way of answering."""
    return {way: mean_and_sd([run[way] for run in runs]) for way in runs[0]}


def as_markdown(table: Mapping[str, Mapping[str, Summary]], counts: Mapping[str, int]) -> str:
    """One table a model."""
    lines = []
    for model, ways in table.items():
        figures = list(next(iter(ways.values())))
        lines += [f"**{model}**, mean ± standard deviation over {counts[model]} seeds", ""]
        rows = [[way, *(cell(row.get(name)) for name in figures)] for way, row in ways.items()]
        lines += [*markdown_table(["", *figures], rows), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(seeds)
