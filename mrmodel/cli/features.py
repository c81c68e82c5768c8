"""`mrmodel features`: look at feature stores and check them."""

from __future__ import annotations

from pathlib import Path

import click

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def group() -> None:
    """Feature stores: what is in them, and whether they are sound."""


@group.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--annotations", type=FILE, help="Every row of this file must have features.")
@click.pass_context
def verify(context: click.Context, folder: Path, annotations: Path | None) -> None:
    """Check hashes, offsets, values and coverage of the feature store DIR.

    Lists everything that is wrong; the exit code is 2 where there is something.
    """
    from mrmodel.features.verify import verify_store

    findings = verify_store(folder, annotations)
    for finding in findings:
        click.echo(finding)
    click.echo(f"{folder}: {len(findings)} findings" if findings else f"{folder}: sound")
    if findings:
        context.exit(2)


@group.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
def info(folder: Path) -> None:
    """Show what the feature store DIR holds and how it was made."""
    from mrmodel.features.verify import describe_store

    for name, value in describe_store(folder).items():
        click.echo(f"{name}: {value}")
