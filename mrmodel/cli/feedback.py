"""``mrmodel feedback``: what people said about hits, delivered for retraining."""

from __future__ import annotations

from pathlib import Path

import click

from mrmodel.cli.options import LIBRARY


@click.group()
def group() -> None:
    """Feedback about hits."""


@group.command()
@LIBRARY
@click.option("--rev", default="HEAD", show_default=True, help="Git revision to compare with.")
def deliver(folder: Path, rev: str) -> None:
    """Make one delivery for retraining of all hits that were accepted or corrected.

    It goes into the store of MRMODEL_INCOMING, with copies of the videos that the data of this
    repository, or of the one in MRMODEL_GIT_URL, do not hold. What was delivered once is not
    delivered again. Rows about test videos are left out and listed; rejected hits wait.
    """
    from mrmodel.server.feedback import JOURNAL, Journal
    from mrmodel.server.feedback_delivery import deliver_here

    journal = Journal(folder / JOURNAL)
    done = deliver_here(journal, rev)
    for one in done.left_out:
        click.echo(f"left out: {one}")
    for one in done.waiting:
        click.echo(f"waits: {one}")
    for problem in done.problems:
        click.echo(f"problem: {problem}")
    if done.name is None:
        click.echo("nothing to deliver")
    else:
        click.echo(f"{done.name}: {done.rows} rows, {len(done.videos)} new videos")
    rejected = len(journal.read().rejected)
    if rejected:
        click.echo(f"{rejected} rejected hits wait in {journal.path}")
