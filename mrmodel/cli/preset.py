"""``mrmodel preset`` and ``mrmodel config``: parameter presets, and validation of params.yaml."""

from __future__ import annotations

from pathlib import Path

import click

from mrmodel import presets
from mrmodel.cli.options import NEW_FILE
from mrmodel.config.schema import load_config
from mrmodel.config.studies import check_studies

FEATURES = click.option(
    "--features",
    type=click.Choice(presets.feature_sets()),
    help="Use these features instead of the preset's own.",
)


@click.group(name="preset")
def group() -> None:
    """List, show and apply parameter presets."""


@group.command(name="list")
def list_command() -> None:
    """List all presets and all values of --features, each with its first comment line."""
    for name in presets.names():
        click.echo(f"{name:<28} {presets.summary(name)}")
    click.echo()
    for name in presets.feature_sets():
        click.echo(f"{f'--features {name}':<28} {presets.feature_summary(name)}")


@group.command()
@click.argument("name")
@FEATURES
def show(name: str, features: str | None) -> None:
    """Print the complete params.yaml of a preset."""
    click.echo(presets.render(name, features), nl=False)


@group.command()
@click.argument("name")
@FEATURES
@click.option("--output", type=NEW_FILE, default=Path("params.yaml"), show_default=True)
def apply(name: str, features: str | None, output: Path) -> None:
    """Overwrite params.yaml with a preset, and list its missing and optional inputs."""
    from mrmodel.config.schema import load_config
    from mrmodel.stages.paths import Paths
    from mrmodel.stages.required_inputs import missing_inputs, optional_inputs

    presets.apply(name, output, features)
    config = load_config(output)
    paths = Paths(config, output.parent)
    missing = missing_inputs(config, paths)
    for line in missing:
        click.echo(f"missing: {line}")
    for line in optional_inputs(config, paths):
        click.echo(f"optional: {line}")
    first = "bring these in, then" if missing else "next:"
    click.echo(f"{output} is now preset {name}; {first} dvc repro")


@click.group(name="config")
def config_group() -> None:
    """Check params.yaml."""


@config_group.command()
@click.argument("path", type=NEW_FILE, default=Path("params.yaml"))
def check(path: Path) -> None:
    """Validate every value of a parameter file; the exit code is 2 on a mistake.

    Also validates studies/params.yaml in the same folder, and whether its captions can be used.
    """
    from mrmodel.stages.paths import Paths
    from mrmodel.stages.required_inputs import check_captions

    config = load_config(path)
    check_studies(path.parent)
    check_captions(config, Paths(config, path.parent))
    models = ", ".join(config.train.models)
    click.echo(
        f"{path}: good. Corpus {config.corpus.name} ({config.corpus.source}), model {models}"
    )
