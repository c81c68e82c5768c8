"""``mrmodel registry`` and ``mrmodel lineage``: the champion model, and where it came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mrmodel.config.schema import Config
    from mrmodel.progress import Reporter
    from mrmodel.registry.champion import ModelRegistry
    from mrmodel.registry.decision import Decision
    from mrmodel.registry.model_record import ModelRecord


# MLflow counts versions from 1.
VERSION = click.IntRange(1)
_MARKS = {True: "passed", False: "FAILED", None: "-"}


def _renamed(new: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    """Callback of a renamed option, which will be removed in the next version."""

    def refuse(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"{parameter.opts[0]} is called {new} now", context)

    return refuse


@click.group()
def group() -> None:
    """Register, promote and roll back models.

    Versions are in MLflow (MLFLOW_TRACKING_URI), the champion pointer and the audit objects in the
    store MRMODEL_REGISTRY (s3://bucket/prefix or a folder); both default to .mrmodel.
    """


@group.command(name="list")
def list_command() -> None:
    """List all versions with their headline metric and aliases, oldest first."""
    registry, _ = _open()
    aliases: dict[int, list[str]] = {}
    for alias, version in registry.versions.aliases().items():
        aliases.setdefault(version, []).append(alias)
    versions = registry.versions.all()
    if not versions:
        click.echo(f"{registry.name}: no version; `mrmodel registry register` makes one")
    for found in versions:
        names = " ".join(sorted(aliases.get(int(found.version), [])))
        click.echo(f"{found.version:>4}  {names:<20}  {(found.description or '').split(';')[0]}")


@group.command()
@click.argument("version", type=VERSION)
def show(version: int) -> None:
    """Print the model card of VERSION."""
    from mrmodel.registry.model_record import render_card

    registry, _ = _open()
    click.echo(render_card(registry.versions.record(version), registry.name), nl=False)


@group.command()
@click.option("--model", help="Name below `models` [default: the first of train.models].")
@click.option(
    "--kind",
    type=click.Choice(["finetuned", "scratch", "pretrained", "imported"]),
    default="finetuned",
    show_default=True,
    help="Which weights of the model.",
)
def register(model: str | None, kind: str) -> None:
    """Register a trained and evaluated model of this repository as the new challenger."""
    registry, config, reporter = _open_for_long()
    # Not before the first line of progress: these imports take seconds.
    from mrmodel.registry.promote import register as run
    from mrmodel.stages.paths import Paths

    name = model or config.train.models[0]
    version, new = run(registry, config, Paths(config), name, kind, reporter)
    note = "" if new else ", which was registered before"
    click.echo(f"{registry.name} version {version}: {name}.{kind}{note}")


@group.command()
@click.argument("version", type=VERSION, required=False)
@click.option(
    "--reset-baseline",
    metavar="REASON",
    default="",
    help="Reason why the test set has changed; skips the comparison with the champion.",
)
@click.option("--new-line", hidden=True, expose_value=False, callback=_renamed("--reset-baseline"))
def promote(version: int | None, reset_baseline: str) -> None:
    """Promote VERSION (default: the challenger) to champion, if it passes every gate.

    The exit code is 2, and nothing changes, if a gate fails or another promotion came first.
    """
    registry, config, reporter = _open_for_long()
    # Not before the first line of progress: these imports take seconds.
    from mrmodel.registry.promote import promote as run

    _print_decision(run(registry, config, version, reset_baseline, reporter))


@group.command()
@click.option("--reason", required=True, help="Why, for the audit object.")
@click.option(
    "--to", "version", type=VERSION, help="An earlier champion [default: the previous one]."
)
def rollback(reason: str, version: int | None) -> None:
    """Make an earlier champion the champion again, immediately and without gates."""
    from mrmodel.registry.promote import rollback as run

    registry, _ = _open()
    _print_decision(run(registry, reason, version))


@group.command()
@click.option("--gates", is_flag=True, help="Print the result of every gate.")
def history(gates: bool) -> None:
    """List every decision, oldest first, from the audit objects."""
    registry, _ = _open()
    for decision in registry.history():
        before = "-" if decision.before is None else decision.before
        reason = f"  ({decision.reason})" if decision.reason else ""
        line = f"{decision.at}  {decision.kind:<8}  version {decision.version}, champion {before}"
        click.echo(f"{line}, by {decision.actor}, test set {decision.test_set[:12]}{reason}")
        for gate in decision.gates:
            if gates or gate.passed is False:
                click.echo(f"    {gate.name}: {_MARKS[gate.passed]}: {gate.detail}")


@group.command()
def reconcile() -> None:
    """Repair after an interruption: set aliases and audit objects according to the pointer."""
    registry, _ = _open()
    done = registry.reconcile()
    for line in done or ["everything agrees with the pointer"]:
        click.echo(line)


def _open() -> tuple[ModelRegistry, Config]:
    from mrmodel.config.schema import load_config
    from mrmodel.registry.champion import open_registry
    from mrmodel.stages.paths import Paths

    config = load_config(Path("params.yaml"))
    return open_registry(config, Paths(config)), config


def _open_for_long() -> tuple[ModelRegistry, Config, Reporter]:
    """As `_open`, with progress on stderr from the start, because the imports take seconds."""
    from mrmodel.progress import RichReporter, Steps

    # The smoke test dominates the time, so an ETA from the other steps would be meaningless.
    reporter = RichReporter(with_eta=False)
    with Steps(reporter, "registry", 1) as steps:
        steps.begin("opening")
        return *_open(), reporter


def _print_decision(decision: Decision) -> None:
    before = "none" if decision.before is None else decision.before
    click.echo(f"{decision.model} champion: version {decision.version} (before: {before})")
    for gate in decision.gates:
        click.echo(f"  {gate.name:<28} {_MARKS[gate.passed]:<7} {gate.detail}")


@click.group()
def lineage_group() -> None:
    """Show where a registered model came from, and reproduce it."""


@lineage_group.command(name="show")
@click.argument("version", type=VERSION)
def show_lineage(version: int) -> None:
    """Print revision, inputs and stages of VERSION, with all hashes."""
    from mrmodel.registry.lineage import describe_lineage

    for line in describe_lineage(_record(version)):
        click.echo(line)


@lineage_group.command()
@click.argument("version", type=VERSION)
@click.pass_context
def reproduce(context: click.Context, version: int) -> None:
    """Reproduce VERSION in a temporary clone of its revision, and compare every output.

    Takes as long as the pipeline up to the training. The exit code is 2 if a byte differs.
    """
    from mrmodel.orchestrate.environment import RuntimeEnvironment
    from mrmodel.registry.lineage import reproduce as run

    found = run(_record(version), RuntimeEnvironment.from_environment())
    for line in found.differences:
        click.echo(line)
    if found.differences:
        click.echo(f"{len(found.differences)} differences in {found.outputs} outputs")
        context.exit(2)
    click.echo(f"equal to the last bit: {found.outputs} outputs and the model folder")


def _record(version: int) -> ModelRecord:
    registry, _ = _open()
    return registry.versions.record(version)
