"""``mrmodel evaluate``: score a prediction file against annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from mrmodel.components import PROTOCOLS
from mrmodel.evaluate.run import get_protocol, score_files
from mrmodel.files import write_json

_FILE = click.Path(path_type=Path)


@click.command("evaluate")
@click.option("--annotations", type=_FILE, required=True, help="Ground truth, JSONL.")
@click.option("--predictions", type=_FILE, required=True, help="Submission, JSONL.")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), required=True)
@click.option(
    "--mode",
    type=click.Choice(["official", "clean"]),
    default="official",
    show_default=True,
    help="official: as the published evaluators, quirks included. clean: ranks by score, clamps "
    "windows to the video, scores a query without windows as a miss.",
)
@click.option(
    "--allow-missing",
    is_flag=True,
    help="Score the queries that both files have instead of failing on a difference.",
)
@click.option("--output", type=_FILE, help="Write all metrics to this JSON file.")
@click.option("--per-query", type=_FILE, help="Write per-query metrics to this JSON file.")
def command(
    annotations: Path,
    predictions: Path,
    protocol: str,
    mode: Literal["official", "clean"],
    allow_missing: bool,
    output: Path | None,
    per_query: Path | None,
) -> None:
    """Score a prediction file against annotations.

    Percentages with two decimals (TVSum and YouTube Highlights: fractions); "-", in JSON null, for
    a metric to which no query contributes.
    """
    scores = score_files(annotations, predictions, protocol, mode, allow_missing=allow_missing)
    chosen = get_protocol(protocol)
    metrics = chosen.main_metrics(scores.metrics)
    width = max(map(len, metrics))
    click.echo(f"{protocol}, mode {mode}, {len(scores.per_query.qids)} queries")
    for name, value in metrics.items():
        shown = "-" if value is None else f"{value:.{chosen.decimals}f}"
        click.echo(f"  {name:<{width}}  {shown:>8}")
    # A file that cannot be written costs neither the table nor the other file.
    try:
        if output is not None:
            write_json(output, scores.metrics)
    finally:
        if per_query is not None:
            write_json(per_query, scores.per_query.as_json())
