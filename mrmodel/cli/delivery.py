"""``mrmodel delivery``: data that others send for training."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def group() -> None:
    """Deliveries of new training data."""


@group.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rev", default="HEAD", show_default=True, help="Revision with the data to compare.")
@click.pass_context
def check(context: click.Context, folder: Path, rev: str) -> None:
    """Say whether the data in FOLDER would be taken, and why not.

    Compares them with the data of this repository, or of the one in MRMODEL_GIT_URL, as the
    scheduled retraining does. Nothing is changed or sent. The exit code is 2 where the delivery
    would be quarantined.
    """
    from mrmodel.orchestrate.places import Places
    from mrmodel.retrain.intake import check_sent

    report = check_sent(folder, Places.from_environment(), rev)
    click.echo(report.markdown(), nl=False)
    if report.state == "quarantined":
        context.exit(2)
