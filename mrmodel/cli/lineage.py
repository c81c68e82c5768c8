"""``mrmodel lineage``: where a registered model came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mrmodel.promotion.records import ModelRecord


@click.group()
def group() -> None:
    """Where a registered model came from, and the same model made again."""


@group.command()
@click.argument("version", type=int)
def show(version: int) -> None:
    """Print revision, inputs and stages of VERSION, with the hash of everything."""
    from mrmodel.promotion.lineage import describe

    for line in describe(_record(version)):
        click.echo(line)


@group.command()
@click.argument("version", type=int)
@click.pass_context
def reproduce(context: click.Context, version: int) -> None:
    """Make VERSION again in a temporary clone of its revision, and compare every output.

    Takes as long as the pipeline up to the training. The exit code is 2 where a byte differs.
    """
    from mrmodel.orchestrate.places import Places
    from mrmodel.promotion.lineage import reproduce as run

    found = run(_record(version), Places.from_environment())
    for line in found.differences:
        click.echo(line)
    if found.differences:
        click.echo(f"{len(found.differences)} differences in {found.outputs} outputs")
        context.exit(2)
    click.echo(f"equal to the last bit: {found.outputs} outputs and the model folder")


def _record(version: int) -> ModelRecord:
    from mrmodel.config import load_config
    from mrmodel.pipeline.layout import Layout
    from mrmodel.promotion.registry import open_registry

    config = load_config(Path("params.yaml"))
    return open_registry(config, Layout(config)).versions.record(version)
