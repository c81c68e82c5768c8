"""`python -m infra.local up | stop | status`: behind `make services` and related targets."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from infra.local.services import PORTS, Services, State
from mrmodel.errors import MrModelError

FOLDER = Path(".mrmodel/services")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=FOLDER,
    show_default=True,
    envvar="MRMODEL_SERVICES",
    show_envvar=True,
    help="Data, logs and secrets of the servers.",
)
@click.pass_context
def main(context: click.Context, folder: Path) -> None:
    """PostgreSQL, SeaweedFS (S3), MLflow and Prefect as processes of this machine."""
    context.obj = folder


@main.command()
@click.option("--port", "ports", multiple=True, metavar="NAME=NUMBER", help="Port of one server.")
@click.option("--free-ports", is_flag=True, help="Choose free ports.")
@click.option("--owner", type=int, metavar="PID", help="Stop them when this process ends.")
@click.pass_obj
def up(folder: Path, ports: tuple[str, ...], free_ports: bool, owner: int | None) -> None:
    """Start the servers in the background; they stay until `stop`."""
    services = Services(folder, owner)
    before = services.up(dict(map(_port, ports)), free_ports)
    for state in before:
        if state.word == "died" and state.running is not None:
            click.echo(f"{state.name} (process {state.running.pid}) had died; started again.")
    if all(state.word == "runs" for state in before):
        click.echo("All of them were running already.")
    _show(services.states())
    click.echo(f"\nTo use them:  . {folder / 'env'}")
    click.echo(
        "It has their addresses and passwords; Prefect's page asks for PREFECT_API_AUTH_STRING."
    )
    click.echo(
        "env-worker has the S3 key for workers of the pools cpu and gpu, env-sender the one for"
    )
    click.echo("those who send deliveries.")


@main.command()
@click.pass_obj
def stop(folder: Path) -> None:
    """Stop the servers; their data are kept."""
    ran = Services(folder).stop()
    click.echo(f"Stopped: {', '.join(ran)}." if ran else "None was running.")


@main.command()
@click.pass_obj
def status(folder: Path) -> None:
    """Show the state of the servers; exits with 1 if one died or does not respond."""
    states = Services(folder).states()
    _show(states)
    for state in states:
        if state.word == "died" and state.running is not None:
            click.echo(f"\n{state.name}: {state.running.last_words()}")
    if any(state.word not in ("runs", "stopped") for state in states):
        sys.exit(1)


def _port(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in PORTS or not number.isdigit() or not 0 < int(number) < 65536:
        raise click.BadParameter(f"{text!r}: NAME=NUMBER, of {', '.join(PORTS)}")
    return name, int(number)


def _show(states: list[State]) -> None:
    for state in states:
        where = f"127.0.0.1:{state.port}"
        log = "" if state.running is None else f"process {state.running.pid}, {state.running.log}"
        click.echo(f"{state.name:<10} {state.word:<16} {where:<16} {log}".rstrip())


if __name__ == "__main__":
    try:
        main()
    except MrModelError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
