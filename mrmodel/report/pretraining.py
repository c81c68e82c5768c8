"""The study `pretraining` as sentences, tables and a curve, for the HTML report and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mrmodel.report.build import Table
from mrmodel.report.charts import Point, line_chart
from mrmodel.report.studies import (
    DIFFERENCE,
    REPORTS,
    all_metrics,
    cell,
    commit_sentences,
    difference_cells,
    number_of_seeds,
    shown_metrics,
    table_of_figures,
    verdicts,
)

PRETRAINING = REPORTS / "pretraining.json"
NONE, INTERVID = "none", "intervid_mr"
# What a model is pre-trained on, in the order of the table.
SOURCES = (NONE, INTERVID, "video_captions")


def pretraining_sentences(table: Mapping[str, Any]) -> list[str]:
    """What was run, and which sets differ from no pre-training."""
    rows = table["rows"]
    words = [
        f"Corpus {table['corpus']}, {table['steps']} steps in each row"
        f"{_lengths(table)}, scored on the reported split; mean ± standard deviation over "
        f"{number_of_seeds(rows)} seeds.",
    ]
    words += commit_sentences(table)
    for model in dict.fromkeys(row["model"] for row in rows.values()):
        of_model = {
            name: found
            for name, found in table["differences"].items()
            if rows[name]["model"] == model
        }
        if of_model:
            words.append(
                f"{model}, fine-tuned, beside {model}.{NONE} in {table['headline']}, by the 95 % "
                f"interval of the difference: {verdicts(of_model)}."
            )
    return words


def _lengths(table: Mapping[str, Any]) -> str:
    if "pretrain_steps" not in table:
        return " on the annotated queries"
    first = table["pretrain_steps"]
    return (
        f": {first} of pre-training and {table['steps'] - first} of fine-tuning on the annotated "
        f"queries, or, without pre-training (`{NONE}`), all of them on these from fresh weights"
    )


def pretraining_tables(table: Mapping[str, Any]) -> list[Table]:
    """Figures of both kinds of weights; differences to no pre-training; all metrics."""
    return [_figures(table), _differences(table), _all_metrics(table)]


def _figures(table: Mapping[str, Any]) -> Table:
    rows, headline = table["rows"], table["headline"]
    shown, decimals = shown_metrics(all_metrics(rows))
    cells = [
        [
            name,
            f"{row['samples']:,}",
            cell((row["pretrained"] or {}).get(headline), decimals),
            *(cell(row["figures"].get(figure), decimals) for figure in shown),
        ]
        for name, row in rows.items()
    ]
    first = f"{shown.get(headline, headline)}, pre-trained only"
    caption = (
        f"Figures in percent: {headline} of the weights before fine-tuning, then figures of the "
        "final weights. Samples are those to pre-train on; a smaller set of InterVid-MR is part "
        "of every larger one."
    )
    return Table(caption, ["", "samples", first, *shown.values()], cells)


def _differences(table: Mapping[str, Any]) -> Table:
    rows = [
        [f"{name} − {table['rows'][name]['model']}.{NONE}", *difference_cells(found)]
        for name, found in table["differences"].items()
    ]
    caption = (
        f"Difference in {table['headline']} of the fine-tuned weights to those without "
        f"pre-training: {table['resamples']:,} bootstrap resamples of whole videos, the same for "
        "both rows, and of each row's seeds."
    )
    return Table(caption, ["", *DIFFERENCE], rows)


def _all_metrics(table: Mapping[str, Any]) -> Table:
    named = {}
    for name, row in table["rows"].items():
        if row["pretrained"] is not None:
            named[f"{name}, pre-trained only"] = {"figures": row["pretrained"]}
        named[name] = {"figures": row["figures"]}
    return table_of_figures(named, None)


def pretraining_charts(table: Mapping[str, Any]) -> list[str]:
    """For each model with several sizes of InterVid-MR, its headline metric over the size.

    Lines are means over the seeds, points single seeds. The line of the pre-trained weights alone
    is that of the paper's figure 2.
    """
    charts = []
    rows = table["rows"].values()
    for model in dict.fromkeys(row["model"] for row in rows):
        sized = [row for row in rows if row["model"] == model and row["source"] == INTERVID]
        if len(sized) < 2:
            continue
        control = [row for row in rows if row["model"] == model and row["source"] == NONE]
        drawn = {
            "pre-trained only": ("pretrained", sized),
            "then fine-tuned": ("figures", [*control, *sized]),
        }
        lines: dict[str, list[Point]] = {}
        points: dict[str, list[Point]] = {}
        for name, (key, found) in drawn.items():
            lines[name] = [
                (float(row["samples"]), row[key][table["headline"]]["mean"]) for row in found
            ]
            points[name] = [
                (float(row["samples"]), value) for row in found for value in row[f"{key}_of_seeds"]
            ]
        label = f"{table['headline']} of {model}"
        charts.append(line_chart(lines, label, "samples", points))
    return charts
