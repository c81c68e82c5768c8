"""``mrmodel serve`` and ``mrmodel feedback``: the server of a library, and verdicts on its hits."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import click

from mrmodel.cli.options import DEVICE, LIBRARY, LIBRARY_MODEL, WORKERS
from mrmodel.server.settings import (
    HOST,
    PORT,
    QUEUE,
    SHORTEST_TOKEN,
    TOKEN_VARIABLE,
    ServerSettings,
)


@click.command(name="serve")
@LIBRARY
@LIBRARY_MODEL
@click.option(
    "--champion",
    metavar="NAME",
    help="Serve the champion of this registered model, and follow it when it moves.",
)
@DEVICE
@click.option("--host", default=HOST, show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65_535), default=PORT, show_default=True)
@click.option("--workers", type=WORKERS, help="Searches at a time [default: one per core].")
@click.option(
    "--queue",
    type=click.IntRange(0, 10_000),
    default=QUEUE,
    show_default=True,
    help="Searches that wait; one more is answered with 429.",
)
def command(
    folder: Path,
    model: str | None,
    champion: str | None,
    device: str,
    host: str,
    port: int,
    workers: int | None,
    queue: int,
) -> None:
    """Serve a library: REST, and a page to search it with (docs/howto/serve.md).

    The library is made if there is none; what clients upload lies in it.

    Only programs of this machine reach it, unless --host names another address. Then clients must
    send the token that the environment variable MRMODEL_TOKEN holds.
    """
    if model is not None and champion is not None:
        raise click.UsageError("give either --model or --champion")
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and len(token) < SHORTEST_TOKEN:
        rule = f"{TOKEN_VARIABLE} has fewer than {SHORTEST_TOKEN} characters"
        raise click.UsageError(f"{rule}; `openssl rand -hex 32` makes one")
    if token is None and not _is_loopback(host):
        rule = f"--host {host} can be reached from other machines, so clients need a token"
        raise click.UsageError(f"{rule}; set {TOKEN_VARIABLE} (`openssl rand -hex 32` makes one)")
    from mrmodel.server.app import run  # torch and FastAPI take seconds

    settings = ServerSettings(
        library=folder,
        model=model,
        champion=champion,
        device=device,
        token=token,
        workers=workers or os.cpu_count() or 1,
        queue=queue,
    )
    run(settings, host, port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@click.group()
def feedback_group() -> None:
    """Feedback about hits."""


@feedback_group.command()
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
