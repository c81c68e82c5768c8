"""``mrmodel preset``: parameter files for known situations."""

from __future__ import annotations

from pathlib import Path

import click

from mrmodel import presets


@click.group(name="preset")
def group() -> None:
    """List, show and apply parameter presets."""


@group.command(name="list")
def list_command() -> None:
    """Names of all presets, each with its first comment line."""
    for name in presets.names():
        click.echo(f"{name:<28} {presets.summary(name)}")


@group.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the complete params.yaml of a preset."""
    click.echo(presets.render(name), nl=False)


@group.command()
@click.argument("name")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("params.yaml"),
    show_default=True,
)
def apply(name: str, output: Path) -> None:
    """Write a preset over params.yaml."""
    presets.apply(name, output)
    click.echo(f"{output} is now preset {name}; next: dvc repro")
