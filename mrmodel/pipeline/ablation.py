"""Study ``ablation``: the rows of SG-DETR's table 2 and the other models, at equal steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrmodel.config import Config
from mrmodel.files import write_json, write_text
from mrmodel.pipeline.stage import run_stage
from mrmodel.pipeline.study_tables import (
    REPORTS,
    Runs,
    all_figures,
    cell,
    commit_sentences,
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

RESULT = REPORTS / "ablation.json"
PREFIX = "sg_detr_ablation_"

# Settings by which the rows differ (sg_detr.md, section 8; the last two belong to the detector).
SWITCHES = (
    "sgca.gate",
    "iou_head",
    "match.cls",
    "gsm.enabled",
    "detector",
    "queries",
    "decoder.look_forward",
)
# Table 2 of the paper: QVHighlights val, features of InternVideo2.
PAPER: dict[str, dict[str, float]] = {
    "MR-full-mAP": {"a": 48.3, "b": 50.1, "c": 51.1, "d": 52.2, "e": 55.6},
    "HL-min-VeryGood-Hit1": {"a": 68.6, "b": 70.1, "c": 69.9, "d": 71.1, "e": 71.4},
}


def ablation(config: Config, reporter: Reporter) -> None:
    """Write ``studies/reports/ablation.json`` and ``ablation.md``."""
    table = summarise(runs_of("ablation")) | made_with()
    write_json(RESULT, table)
    write_text(RESULT.with_suffix(".md"), markdown_page(sentences(table), grids(table)))


def summarise(runs: Runs) -> dict[str, Any]:
    """The table: what all runs share, and a row a preset with its switches and summary.

    Args:
        runs: the results of ``ablation_run``, of each seed, by preset.

    Raises:
        DataError: there are no runs, or runs of different corpora, figures or numbers of steps.
    """
    shared = shared_values("ablation", runs, ("corpus", "headline", "steps"))
    return {**shared, "rows": {name: _row(of_seeds) for name, of_seeds in runs.items()}}


def _row(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = runs[0]
    settings = first["settings"]
    is_sg = first["model"] == "sg_detr"
    return {
        "model": first["model"],
        "values": settings.get("preset", "paper") if is_sg else None,
        "switches": {name: _at(settings, name) for name in SWITCHES} if is_sg else {},
        "parameters": first["parameters"],
        "seeds": len(runs),
        "figures": mean_and_sd([run["figures"] for run in runs]),
    }


def _at(settings: Any, path: str) -> Any:
    for part in path.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def sentences(table: Mapping[str, Any]) -> list[str]:
    """What was run, the order of the rows, and which of the two sets of values measures better."""
    rows, headline = table["rows"], table["headline"]
    means = {short(name): row["figures"][headline]["mean"] for name, row in rows.items()}
    order = sorted(means, key=lambda name: -means[name])
    words = [
        f"Corpus {table['corpus']}, {table['steps']} steps from fresh weights on the annotated "
        f"queries, scored on the reported split; mean ± standard deviation over "
        f"{number_of_seeds(rows)} seeds.",
        f"Order by {headline}: {', '.join(order)}.",
    ]
    words += commit_sentences(table)
    values = {
        rows[name]["values"]: name for name in (f"{PREFIX}e", f"{PREFIX}e_paper") if name in rows
    }
    if len(values) == 2:
        best = max(values, key=lambda value: means[short(values[value])])
        shown = [
            f"{value} {cell(rows[name]['figures'][headline])}" for value, name in values.items()
        ]
        words.append(
            f"Where the paper's values and ours differ, {best} measures better "
            f"({headline}: {', '.join(shown)})."
        )
    return words


def grids(table: Mapping[str, Any]) -> list[Table]:
    """Our figures beside those of the paper; the switches of the rows; all figures."""
    rows, headline = table["rows"], table["headline"]
    figures = all_figures(rows)
    compared = [headline, *(name for name in PAPER if name in figures and name != headline)]
    paper = [name for name in compared if name in PAPER]
    strong = max(range(len(rows)), key=lambda i: _mean(list(rows.values())[i], headline))
    beside = Table(
        "Rows of table 2 of the paper, and other models, percent. The paper's figures are of "
        "QVHighlights and show what each part gave there.",
        ["", *compared, *(f"{name}, paper" for name in paper), "parameters"],
        [
            [
                short(name),
                *(cell(row["figures"].get(figure)) for figure in compared),
                *(_text(PAPER[figure].get(short(name))) for figure in paper),
                f"{row['parameters']:,}",
            ]
            for name, row in rows.items()
        ],
        strong,
    )
    switched = {name: row for name, row in rows.items() if row["switches"]}
    switches = Table(
        "The switches of the rows.",
        ["", "values", *SWITCHES],
        [
            [
                short(name),
                _text(row["values"]),
                *(_text(row["switches"].get(switch)) for switch in SWITCHES),
            ]
            for name, row in switched.items()
        ],
    )
    named = {short(name): row for name, row in rows.items()}
    return [beside, switches, table_of_figures(named, strong)]


def short(name: str) -> str:
    """The name of a row in the table: `a` for ``sg_detr_ablation_a``."""
    return name.removeprefix(PREFIX)


def _mean(row: Mapping[str, Any], figure: str) -> float:
    return float(row["figures"][figure]["mean"])


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    run_stage(ablation)
