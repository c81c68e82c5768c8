"""``mrmodel config``: is params.yaml right?"""

from __future__ import annotations

from pathlib import Path

import click

from mrmodel.config import load_config


@click.group(name="config")
def group() -> None:
    """Check params.yaml."""


@group.command()
@click.argument(
    "path", type=click.Path(path_type=Path, dir_okay=False), default=Path("params.yaml")
)
def check(path: Path) -> None:
    """Check every value of a parameter file; a mistake is named and gives exit code 2."""
    config = load_config(path)
    models = ", ".join(config.train.models)
    click.echo(
        f"{path}: good. Corpus {config.corpus.name} ({config.corpus.source}), model {models}"
    )
