"""``mrmodel weights``: checkpoints of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mrmodel.official.settings import FORMATS

_PATH = click.Path(path_type=Path)


@click.group()
def group() -> None:
    """Checkpoints of other programs."""


@group.command(name="import")
@click.argument("file", type=_PATH)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="auto: as the names of the tensors say.",
)
@click.option("--output", type=_PATH, required=True, help="Model folder to write.")
@click.option(
    "--video-streams",
    help="In order: NAME of an encoder, or NAME:WIDTH of other rows; commas between.",
)
@click.option("--text-streams", help="Likewise, for sentences.")
@click.option("--heads", type=click.IntRange(1), help="Attention heads.")
@click.option(
    "--clip-len", "clip_len_s", type=click.FloatRange(0, min_open=True), help="Seconds of a clip."
)
@click.option(
    "--max-clips", type=click.IntRange(1), help="Clips of a video that the model sees at once."
)
@click.option(
    "--max-tokens", type=click.IntRange(1), help="Tokens of a sentence; longer ones are cut."
)
@click.option("--legacy", is_flag=True, help="Repeat the published quirks (legacy_* settings).")
@click.option("--force", is_flag=True, help="Replace the model that the folder holds.")
def import_command(
    file: Path,
    kind: str,
    output: Path,
    video_streams: str | None,
    text_streams: str | None,
    legacy: bool,
    force: bool,
    **given: Any,
) -> None:
    """Turn the published checkpoint FILE into a model folder, without running code of the file.

    Sizes are read off the tensors, the rest off the options that FILE holds; an option here wins.
    Where a tensor does not fit, nothing is written and the exit code is 2.
    """
    from mrmodel.official.convert import ImportRequest, import_checkpoint
    from mrmodel.official.report import format_report
    from mrmodel.official.streams import parse_streams

    request = ImportRequest(
        file=file,
        output=output,
        format=kind,
        video_streams=parse_streams(video_streams) if video_streams else (),
        text_streams=parse_streams(text_streams) if text_streams else (),
        given={name: value for name, value in given.items() if value is not None},
        legacy=legacy,
        replace=force,
    )
    report = import_checkpoint(request)
    click.echo(format_report(report))
    if report.fit.misfits:
        click.get_current_context().exit(2)
    click.echo(f"written: {output}")
