"""Stages as Markdown, for Prefect artifacts and the command line."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mrmodel.orchestrate.result_store import StageResult
from mrmodel.text import sparkline, table

if TYPE_CHECKING:  # A worker renders one stage and needs no graph: importing DVC takes a second.
    from mrmodel.orchestrate.scheduler import StageRow

_WIDTH = 40
_MOST_FIGURES = 60


def stages_markdown(rows: Iterable[StageRow], rev: str, branch: str | None) -> str:
    """One table row per stage: its state, the reason, where it ran and how long."""
    head = ("stage", "state", "why", "pool", "attempts", "seconds", "worker", "record")
    lines: list[tuple[object, ...]] = []
    for row in rows:
        result = row.result
        seconds = f"{sum(result.seconds.values()):.1f}" if result else ""
        worker = result.worker if result else ""
        record = f"[MLflow]({result.mlflow})" if result and result.mlflow else ""
        why = row.reason.splitlines()[0] if row.reason else ""
        attempts = row.attempts or ""
        lines.append((row.stage, row.state, why, row.pool, attempts, seconds, worker, record))
    where = f", results on branch `{branch}`" if branch else ""
    return f"Code {rev[:12]}{where}\n\n{table(head, lines)}"


def stage_markdown(result: StageResult) -> str:
    """One stage: its steps, metrics, curves and outputs."""
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    parts = [f"**{result.stage}** on {result.worker}: {steps}"]
    if result.mlflow:
        parts.append(f"[MLflow run]({result.mlflow})")
    outs = [(out["path"], out.get("size", ""), out["md5"]) for out in result.entry.get("outs", [])]
    parts.append(table(("output", "bytes", "md5"), outs))
    figures = [
        (path, name, f"{value:.5g}")
        for path, tree in result.figures.items()
        for name, value in _numbers(tree)
    ]
    if figures:
        parts.append(table(("file", "figure", "value"), figures[:_MOST_FIGURES]))
        if len(figures) > _MOST_FIGURES:
            parts.append(f"and {len(figures) - _MOST_FIGURES} more")
    curves = [
        (path, f"{values[0]:.4g}", sparkline(values, _WIDTH, fmean), f"{values[-1]:.4g}")
        for path, values in result.curves.items()
        if values
    ]
    if curves:
        parts.append(table(("curve", "first", "", "last"), curves))
    return "\n\n".join(parts)


def _numbers(tree: Any, prefix: str = "") -> list[tuple[str, float]]:
    if isinstance(tree, dict):
        return [
            found
            for key, value in tree.items()
            for found in _numbers(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    is_number = isinstance(tree, int | float) and not isinstance(tree, bool)
    return [(prefix, float(tree))] if is_number else []
