"""What the summaries of studies share: runs from their files, means over seeds, tables as text.

A run of a study is one JSON file ``<what>-<seed>.json`` below ``studies/reports/<study>/``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrmodel.errors import DataError
from mrmodel.report.build import Table
from mrmodel.track.mlflow_log import code_tags

REPORTS = Path("studies") / "reports"

# {figure: {"mean": ..., "sd": ...}}
Summary = dict[str, dict[str, float]]
# Headings of `difference_cells`.
DIFFERENCE = ("difference", "95 % interval", "resamples above 0")
# {what: results of its seeds}
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def runs_of(study: str, reports: Path = REPORTS) -> dict[str, list[Any]]:
    """The finished runs of a study: ``{what: [content of its file of each seed]}``, by name."""
    runs: dict[str, list[Any]] = defaultdict(list)
    for path in sorted((reports / study).glob("*.json")):
        runs[path.stem.rpartition("-")[0]].append(json.loads(path.read_text(encoding="utf-8")))
    return dict(runs)


def shared_values(study: str, runs: Runs, keys: Sequence[str]) -> dict[str, Any]:
    """The values that all runs of a study must have in common.

    Raises:
        DataError: there are no runs, or they differ in one of `keys`.
    """
    shared = {}
    for key in keys:
        found = {name: {run[key] for run in of_seeds} for name, of_seeds in runs.items()}
        values = set().union(*found.values())
        if len(values) != 1:
            rule = f"rows of one table need one {key}, found {found}; delete the runs of old ones"
            raise DataError(rule, file=REPORTS / study)
        shared[key] = values.pop()
    return shared


def mean_and_sd(runs: Sequence[Mapping[str, float]]) -> Summary:
    """Mean and standard deviation over runs, of the figures that all of them have.

    The standard deviation is that of a sample (n - 1); one run has none, which is written as 0.
    """
    summary = {}
    for name in (name for name in runs[0] if all(name in run for run in runs)):
        values = np.array([run[name] for run in runs], dtype=np.float64)
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        summary[name] = {"mean": float(values.mean()), "sd": spread}
    return summary


def number_of_seeds(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How many seeds the rows of a table have: ``3``, or ``1 to 3`` where they differ."""
    counts = sorted({row["seeds"] for row in rows.values()})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def all_figures(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of the figures of all rows, in the order in which they appear."""
    return list(dict.fromkeys(name for row in rows.values() for name in row["figures"]))


def table_of_figures(rows: Mapping[str, Mapping[str, Any]], strong: int | None) -> Table:
    """All figures of all rows, by the names that the rows shall have."""
    figures = all_figures(rows)
    cells = [
        [name, *(cell(row["figures"].get(figure)) for figure in figures)]
        for name, row in rows.items()
    ]
    return Table("All figures, percent.", ["", *figures], cells, strong)


def cell(figure: Mapping[str, float] | None, decimals: int = 2) -> str:
    """``mean ± standard deviation``, or a dash."""
    if figure is None:
        return "–"
    return f"{figure['mean']:,.{decimals}f} ± {figure['sd']:,.{decimals}f}"


def difference_cells(found: Mapping[str, float]) -> list[str]:
    """Difference, 95 % interval and share of resamples above 0, of `Comparison.as_json`."""
    return [
        f"{found['difference']:+.2f}",
        f"{found['low']:+.2f} to {found['high']:+.2f}",
        f"{100 * found['share_above_zero']:.1f} %",
    ]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def made_with() -> dict[str, str]:
    """The commit that a study is of, as a part of its result; empty outside of git."""
    revision = code_tags().get("git.revision")
    return {} if revision is None else {"commit": revision[:12]}


def commit_sentences(table: Mapping[str, Any]) -> list[str]:
    """Which commit a study is of: later ones may train, or make windows, in another way."""
    return [f"Made with commit {table['commit']}."] if "commit" in table else []


def markdown_page(sentences: Sequence[str], tables: Sequence[Table]) -> str:
    """Sentences, each a line, and then each table below its caption."""
    lines = [*sentences, ""]
    for table in tables:
        lines += [table.caption, "", *markdown_table(table.columns, table.rows), ""]
    return "\n".join(lines)
