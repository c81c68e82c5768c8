"""Study results as sentences and tables, for the HTML report and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrmodel.report.build import Table
from mrmodel.text import table

REPORTS = Path("studies") / "reports"
ABLATION = REPORTS / "ablation.json"
COMPARISON = REPORTS / "compare.json"
# Headings of `difference_cells`.
DIFFERENCE = ("difference", "95 % interval", "resamples above 0")
ROW_PREFIX = "sg_detr_ablation_"
# Settings that differ between rows (docs/models/sg_detr.md); the last four: detector.
SWITCHES = (
    "saliency_guided",
    "iou_head",
    "global_saliency",
    "query_selection",
    "anchor_head",
    "auxiliary_queries",
    "queries",
)
# Table 2 of the paper: QVHighlights val, features of InternVideo2.
PAPER_METRICS: dict[str, dict[str, float]] = {
    "MR-full-mAP": {"a": 48.3, "b": 50.1, "c": 51.1, "d": 52.2, "e": 55.6},
    "HL-min-VeryGood-Hit1": {"a": 68.6, "b": 70.1, "c": 69.9, "d": 71.1, "e": 71.4},
}
# Metrics of the first table and their headings, in percent; one decimal, given the standard
# deviations. Other protocols show their first five.
SHOWN = {
    "MR-full-mAP": "mAP",
    "MR-full-R1@0.5": "R1@0.5",
    "MR-full-R1@0.7": "R1@0.7",
    "HL-min-VeryGood-mAP": "HL mAP",
    "HL-min-VeryGood-Hit1": "HL Hit@1",
}
COSTS = ("training_seconds", "queries_per_second")


def ablation_sentences(table: Mapping[str, Any]) -> list[str]:
    """What was run, the ranking of the rows, and which of the two sets of values is better."""
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
        rows[name]["values"]: name
        for name in (f"{ROW_PREFIX}e", f"{ROW_PREFIX}e_released")
        if name in rows
    }
    if len(values) == 2:
        best = max(values, key=lambda value: means[short(values[value])])
        shown = [
            f"{value} {cell(rows[name]['figures'][headline])}" for value, name in values.items()
        ]
        words.append(
            f"Where the published values and ours differ, {best} measures better "
            f"({headline}: {', '.join(shown)})."
        )
    return words


def ablation_tables(table: Mapping[str, Any]) -> list[Table]:
    """Our metrics next to those of the paper; the switches of the rows; all metrics."""
    rows, headline = table["rows"], table["headline"]
    metrics = all_metrics(rows)
    compared = [headline, *(name for name in PAPER_METRICS if name in metrics and name != headline)]
    paper = [name for name in compared if name in PAPER_METRICS]
    strong = max(range(len(rows)), key=lambda i: mean_of(list(rows.values())[i], headline))
    beside = Table(
        "Rows of table 2 of the paper, and other models, percent. The paper's figures are of "
        "QVHighlights and show what each part gave there.",
        ["", *compared, *(f"{name}, paper" for name in paper), "parameters"],
        [
            [
                short(name),
                *(cell(row["figures"].get(figure)) for figure in compared),
                *(_text(PAPER_METRICS[figure].get(short(name))) for figure in paper),
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
    return name.removeprefix(ROW_PREFIX)


def setting_at(settings: Any, path: str) -> Any:
    """Value at a dotted path; None if there is no such key."""
    for part in path.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def comparison_sentences(table: Mapping[str, Any]) -> list[str]:
    """What was run, the ranking of the models, and which differ from the default model."""
    rows, headline, default = table["rows"], table["headline"], table["default"]
    words = [
        f"Corpus {table['corpus']}, {table['steps']} steps from fresh weights on the annotated "
        f"queries, each model at its size in params.yaml, scored on the reported split; mean ± "
        f"standard deviation over {number_of_seeds(rows)} seeds.",
        f"Order by {headline}: {', '.join(rows)}.",
    ]
    words += commit_sentences(table)
    if table["differences"]:
        shown = verdicts(table["differences"])
        words.append(f"Beside {default}, by the 95 % interval of the difference: {shown}.")
    return words


def verdicts(differences: Mapping[str, Mapping[str, float]]) -> str:
    """Names by whether the interval of their difference is above, below or around 0."""
    found: dict[str, list[str]] = {}
    for name, one in differences.items():
        clear = "better" if one["low"] > 0 else "worse" if one["high"] < 0 else None
        found.setdefault(clear or "no clear difference", []).append(name)
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in found.items())


def comparison_tables(table: Mapping[str, Any]) -> list[Table]:
    """Metrics and costs; differences to the default model; all metrics."""
    strong = list(table["rows"]).index(table["default"])
    first = _figures_and_costs(table, strong)
    return [first, _differences(table), table_of_figures(table["rows"], strong)]


def _figures_and_costs(table: Mapping[str, Any], strong: int) -> Table:
    shown, decimals = shown_metrics(all_metrics(table["rows"]))
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


def mean_of(row: Mapping[str, Any], figure: str) -> float:
    """Mean over the seeds of a row."""
    return float(row["figures"][figure]["mean"])


def number_of_seeds(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Number of seeds of the rows: ``3``, or ``1 to 3`` if they differ."""
    counts = sorted({row["seeds"] for row in rows.values()})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def all_metrics(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the metrics of all rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows.values() for name in row["figures"]))


def shown_metrics(metrics: Sequence[str]) -> tuple[dict[str, str], int]:
    """Headings of the metrics of a first table, and their number of decimals."""
    shown = {name: SHOWN[name] for name in metrics if name in SHOWN}
    return (shown, 1) if shown else ({name: name for name in metrics[:5]}, 2)


def table_of_figures(rows: Mapping[str, Mapping[str, Any]], strong: int | None) -> Table:
    """All metrics of all rows, keyed by row heading."""
    metrics = all_metrics(rows)
    cells = [
        [name, *(cell(row["figures"].get(figure)) for figure in metrics)]
        for name, row in rows.items()
    ]
    return Table("All metrics, percent.", ["", *metrics], cells, strong)


def commit_sentences(table: Mapping[str, Any]) -> list[str]:
    """The commit of a study; later commits may train or post-process differently."""
    return [f"Made with commit {table['commit']}."] if "commit" in table else []


def cell(figure: Mapping[str, float] | None, decimals: int = 2) -> str:
    """``mean ± standard deviation``, or a dash."""
    if figure is None:
        return "–"
    return f"{figure['mean']:,.{decimals}f} ± {figure['sd']:,.{decimals}f}"


def difference_cells(found: Mapping[str, float]) -> list[str]:
    """Difference, 95 % interval and fraction of resamples above 0, from `Comparison.as_json`."""
    return [
        f"{found['difference']:+.2f}",
        f"{found['low']:+.2f} to {found['high']:+.2f}",
        f"{100 * found['share_above_zero']:.1f} %",
    ]


def markdown_page(sentences: Sequence[str], tables: Sequence[Table]) -> str:
    """Sentences, one per line, then each table below its caption."""
    lines = [*sentences, ""]
    for grid in tables:
        lines += [grid.caption, "", table(grid.columns, grid.rows), ""]
    return "\n".join(lines)
