"""Study ``seeds``: mean and standard deviation over the seeds of every figure."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from mrmodel.config import Config
from mrmodel.files import write_json, write_text
from mrmodel.pipeline.stage import run_stage
from mrmodel.progress import Reporter

Figures = dict[str, dict[str, float]]


def seeds(config: Config, reporter: Reporter) -> None:
    """Write ``studies/reports/seeds.json`` and ``seeds.md``."""
    reports = Path("studies") / "reports"
    runs: dict[str, list[Figures]] = defaultdict(list)
    for path in sorted((reports / "seeds").glob("*.json")):
        model = path.stem.rpartition("-")[0]
        runs[model].append(json.loads(path.read_text(encoding="utf-8")))
    table = {model: summarise(found) for model, found in runs.items()}
    write_json(reports / "seeds.json", table)
    write_text(reports / "seeds.md", as_markdown(table, {m: len(r) for m, r in runs.items()}))


def summarise(runs: list[Figures]) -> dict[str, dict[str, dict[str, float]]]:
    """``{way: {figure: {mean, sd}}}``; the standard deviation is that of a sample (n - 1)."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for way, figures in runs[0].items():
        summary[way] = {}
        for name in figures:
            values = np.array([run[way][name] for run in runs])
            spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            summary[way][name] = {"mean": float(values.mean()), "sd": spread}
    return summary


def as_markdown(
    table: dict[str, dict[str, dict[str, dict[str, float]]]], counts: dict[str, int]
) -> str:
    """One table a model."""
    lines = []
    for model, ways in table.items():
        figures = list(next(iter(ways.values())))
        lines += [f"**{model}**, mean ± standard deviation over {counts[model]} seeds", ""]
        lines += ["| | " + " | ".join(figures) + " |", "|---" * (len(figures) + 1) + "|"]
        for way, row in ways.items():
            cells = [f"{row[name]['mean']:.2f} ± {row[name]['sd']:.2f}" for name in figures]
            lines.append(f"| {way} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(seeds)
