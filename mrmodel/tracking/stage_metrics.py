"""Logs training and evaluation results to MLflow: curves, tables, plots."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrmodel.files import read_json
from mrmodel.report.charts import Point, bar_chart, line_chart, standalone
from mrmodel.tracking.run import TrackedRun

# Maximum number of lines in a plot.
_LINES = 6
_TOTAL, _TRAIN, _VALIDATION, _RATE = "train/loss", "train/", "val/", "lr"


def record_training(record: TrackedRun, metrics_path: Path) -> None:
    """Log the results and the learning curves of a training.

    Args:
        record: the run.
        metrics_path: stem of the files that the training wrote, ``.json`` and ``.csv``.
    """
    for suffix in (".json", ".csv"):
        record.file(metrics_path.with_suffix(suffix))
    for name, picture in learning_curves(metrics_path.with_suffix(".csv")).items():
        record.text(f"curves/{name}.svg", picture)


def learning_curves(history: Path) -> dict[str, str]:
    """Name -> SVG: loss, loss terms, validation metrics, learning rate."""
    with history.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    parts = [name for name in columns if name.startswith(_TRAIN) and name != _TOTAL]
    groups = {
        "loss": [name for name in columns if name == _TOTAL],
        **_numbered("losses", parts),
        **_numbered("validation", [name for name in columns if name.startswith(_VALIDATION)]),
        "learning_rate": [name for name in columns if name == _RATE],
    }
    drawn = {
        name: line_chart({column: _points(rows, column) for column in group}, name)
        for name, group in groups.items()
    }
    return {name: standalone(chart) for name, chart in drawn.items() if chart}


def record_evaluation(record: TrackedRun, reports: Path) -> None:
    """Log the metrics of every evaluated variant, as metrics, tables and plots.

    Args:
        record: the run.
        reports: holds metrics.json, recall.csv and evaluation/comparison.json.
    """
    metrics = read_json(reports / "metrics.json")
    flat = {f"{way}/{name}": value for way, row in metrics.items() for name, value in row.items()}
    record.log({name: value for name, value in flat.items() if value is not None}, 0)
    record.table("tables/figures.json", _columns("way", metrics))
    comparison = read_json(reports / "evaluation" / "comparison.json")
    record.table("tables/intervals.json", _columns("way", comparison["intervals"]))
    record.table("tables/differences.json", _columns("pair", comparison["differences"]))
    with (reports / "recall.csv").open(newline="", encoding="utf-8") as file:
        recall = list(csv.DictReader(file))
    record.table("tables/recall.json", _columns_of_recall(recall))
    curves: dict[str, list[Point]] = {}
    for row in recall:
        curves.setdefault(row["way"], []).append((float(row["iou"]), float(row["R1"])))
    headline = {way: float(row["value"]) for way, row in comparison["intervals"].items()}
    charts = {
        "recall": line_chart(curves, "R1, percent", "IoU"),
        "headline": bar_chart(headline, comparison["figure"]),
    }
    for name, chart in charts.items():
        if chart:
            record.text(f"plots/{name}.svg", standalone(chart))


def _numbered(name: str, columns: Sequence[str]) -> dict[str, Sequence[str]]:
    """Groups small enough for one plot: ``losses``, ``losses-2`` ..."""
    starts = range(0, len(columns), _LINES)
    return {
        f"{name}-{number}" if number > 1 else name: columns[start : start + _LINES]
        for number, start in enumerate(starts, start=1)
    }


def _points(rows: Sequence[Mapping[str, str]], column: str) -> list[Point]:
    return [(float(row["step"]), float(row[column])) for row in rows if row[column]]


def _columns(first: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of a table with one row per key, and a column for each name in any row."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {first: list(rows), **{name: [row.get(name) for row in rows.values()] for name in names}}


def _columns_of_recall(rows: Sequence[Mapping[str, str]]) -> dict[str, list[Any]]:
    numbers = {name: [float(row[name]) for row in rows] for name in ("iou", "R1")}
    return {"way": [row["way"] for row in rows], **numbers}
