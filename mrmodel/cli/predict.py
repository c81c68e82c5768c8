"""``mrmodel predict``: search one video file."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from mrmodel.addresses import video_path
from mrmodel.cli.options import DEVICE, MODEL, NEW_FILE, echo_json, echo_notes
from mrmodel.predict.queries import check_queries
from mrmodel.stages.served import choose_model
from mrmodel.text import sparkline

# Formats of --plot.
PLOTS = (".png", ".svg", ".pdf")


@click.command(name="predict")
@click.argument("video")
@click.option("--query", "queries", multiple=True, required=True, help="A sentence; repeatable.")
@MODEL
@DEVICE
@click.option(
    "--top",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Windows to print for each query.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per query.")
@click.option(
    "--plot",
    type=NEW_FILE,
    help="Also draw frames, clip scores and windows to this file (PNG, SVG or PDF).",
)
def command(
    video: str,
    queries: tuple[str, ...],
    model: str | None,
    device: str,
    top: int,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Find the moments in VIDEO that the queries describe, and score every clip.

    The line `clips` is a curve of the clip scores along the video, with one character per clip. If
    there are more clips than fit into the line, each character shows the highest score of several
    neighbouring clips. --json prints every score. A note tells which queries the text encoder
    cannot read, in whole or in part; the default one reads English.

    Without --model, a model that was trained on the rendered sample answers about videos of that
    sample only. Other videos are answered zero-shot, by similarity of clips and sentence, and a
    note says so.
    """
    if plot is not None and plot.suffix not in PLOTS:
        rule = f"{plot}: expected a name that ends in one of {', '.join(PLOTS)}"
        raise click.BadParameter(rule, param_hint="--plot")
    check_queries(queries)
    path = video_path(video)
    predictor, why = choose_model(model, [path], device)
    score = "similarity" if predictor.is_zero_shot else "confidence"
    searchable = predictor.encode(path)
    results = predictor.search(searchable, queries)
    for number, result in enumerate(results):
        if as_json:
            echo_json(result.as_row(number, top))
            continue
        click.echo(f"{result.query}")
        for moment in result.moments[:top]:
            window = f"{moment.start_s:8.1f} s to {moment.end_s:8.1f} s"
            click.echo(f"  {window}   {score} {moment.score:.2f}")
        click.echo(curve_line(result.clip_scores, shutil.get_terminal_size((80, 24)).columns))
    echo_notes(predictor, results, [why, *searchable.report.notes()])
    if plot is not None:
        from mrmodel.report.timeline_plot import save_timeline

        save_timeline(plot, path, results)


def curve_line(scores: tuple[float, ...], width: int) -> str:
    """The line ``clips`` of one query.

    Args:
        scores: one per clip.
        width: columns of the terminal, the maximum length of the line. Clips that share a column
            show their maximum, because a mean would hide a short moment in a long video.
    """
    label = "  clips  "
    return label + sparkline(scores, width - len(label), max)
