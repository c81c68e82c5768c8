"""`mrmodel data`: look at annotation files and check them."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def group() -> None:
    """Annotation files: whether they are sound, and what is in them."""


@group.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--videos",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that must hold every video.",
)
@click.option("--clip-len", default=2.0, show_default=True, help="Seconds of one clip.")
@click.pass_context
def check(context: click.Context, file: Path, videos: Path | None, clip_len: float) -> None:
    """Check the annotation FILE (JSON lines in the QVHighlights schema) and sum it up.

    Lists every mistake with its line; the exit code is 2 where there is one.
    """
    from mrmodel.data.check import check_file, format_report

    report = check_file(file, videos, clip_len)
    click.echo(format_report(report))
    if report.errors:
        context.exit(2)
