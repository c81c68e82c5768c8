"""``mrmodel weights``: published checkpoints of models and encoders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrmodel.cli.options import CLIP_LEN
from mrmodel.components import PROTOCOLS
from mrmodel.convert.settings import FORMATS
from mrmodel.encoders.user_weights import PUBLISHED

if TYPE_CHECKING:
    from mrmodel.encoders.user_weights import SetLock

_PATH = click.Path(path_type=Path)


@click.group()
def group() -> None:
    """Import published models; convert, verify and share encoder weights."""


@group.command(name="import")
@click.argument("file", type=_PATH)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="auto: detected from the tensor names.",
)
@click.option("--output", type=_PATH, required=True, help="Model folder to write.")
@click.option(
    "--video-streams",
    help="Comma-separated, in order: NAME of an encoder, or NAME:WIDTH of other features.",
)
@click.option("--text-streams", help="The same for text.")
@click.option("--heads", type=click.IntRange(1), help="Attention heads.")
@click.option("--clip-len", "clip_len_s", type=CLIP_LEN, help="Seconds of a clip.")
@click.option("--max-clips", type=click.IntRange(1), help="Maximum number of clips per video.")
@click.option(
    "--max-tokens", type=click.IntRange(1), help="Tokens per sentence; longer ones are truncated."
)
@click.option(
    "--dataset", type=click.Choice(list(PROTOCOLS)), help="Data set that the model was trained on."
)
@click.option("--legacy", is_flag=True, help="Reproduce the published quirks (legacy_* settings).")
@click.option("--force", is_flag=True, help="Replace an existing model.")
def import_command(
    file: Path,
    kind: str,
    output: Path,
    video_streams: str | None,
    text_streams: str | None,
    legacy: bool,
    force: bool,
    **given: Any,
) -> None:
    """Convert the published checkpoint FILE to a model folder, without running code from it.

    Sizes are inferred from the tensors, the rest is read from the options stored in FILE; options
    given here take precedence. If a tensor does not match, nothing is written and the exit code
    is 2.
    """
    from mrmodel.convert.checkpoint import CheckpointImportRequest, format_report, import_checkpoint
    from mrmodel.convert.streams import parse_streams

    request = CheckpointImportRequest(
        file=file,
        output=output,
        format=kind,
        video_streams=parse_streams(video_streams) if video_streams else (),
        text_streams=parse_streams(text_streams) if text_streams else (),
        given={name: value for name, value in given.items() if value is not None},
        legacy=legacy,
        replace=force,
    )
    report = import_checkpoint(request)
    click.echo(format_report(report))
    if report.fit.mismatches:
        click.get_current_context().exit(2)
    click.echo(f"written: {output}")


@group.command()
@click.argument("name", metavar="|".join(PUBLISHED))
@click.option("--weights", type=_PATH, required=True, help="Published file.")
@click.option("--vocabulary", type=_PATH, help="Published vocabulary, for text encoders.")
@click.option(
    "options",
    "--option",
    multiple=True,
    metavar="NAME=VALUE",
    help="A value in config.json; repeatable.",
)
@click.option("--force", is_flag=True, help="Replace an existing set.")
def convert(
    name: str, weights: Path, vocabulary: Path | None, options: tuple[str, ...], force: bool
) -> None:
    """Convert published encoder weights to a weight set, without running code from the files.

    The set is written below MRMODEL_WEIGHTS_DIR and locked by SHA-256.
    """
    from mrmodel.convert.encoders.convert import Conversion, parse_options
    from mrmodel.convert.encoders.convert import convert as convert_set

    chosen = parse_options(options)
    _show(name, convert_set(Conversion(name, weights, vocabulary, chosen, replace=force)))


@group.command()
@click.argument("name", metavar="SET")
def lock(name: str) -> None:
    """Lock the current content of the weight set SET, e.g. after editing its config.json.

    Features extracted before keep their fingerprint and no longer match.
    """
    from mrmodel.convert.encoders.convert import lock_again

    _show(name, lock_again(name))


@group.command()
@click.argument("names", metavar="[SET]...", nargs=-1)
@click.pass_context
def verify(context: click.Context, names: tuple[str, ...]) -> None:
    """Check weights against their SHA-256: those of the packages, and the sets SET.

    Default: all existing sets. The exit code is 2 if there is a problem.
    """
    from mrmodel.convert.encoders.convert import verify_weights

    findings = verify_weights(names)
    for finding in findings:
        click.echo(finding.line)
    if not all(finding.sound for finding in findings):
        context.exit(2)


@group.command()
@click.argument("names", metavar="[SET]...", nargs=-1)
def pin(names: tuple[str, ...]) -> None:
    """Pin the weight sets SET in encoder_weights.lock, which is a DVC dependency.

    Default: all existing sets. Run it in the root of the repository.
    """
    from mrmodel.encoders.weights_lock import pin_sets
    from mrmodel.stages.paths import PIN_FILE

    for name in pin_sets(Path(PIN_FILE), names):
        click.echo(f"{name}: pinned in {PIN_FILE}")


@group.command()
@click.argument("store")
@click.argument("names", metavar="[SET]...", nargs=-1)
def push(store: str, names: tuple[str, ...]) -> None:
    """Upload weight sets to STORE (s3://bucket/prefix or a folder), for other machines to pull.

    Default: all existing sets.
    """
    from mrmodel.encoders.weights_lock import push_sets
    from mrmodel.storage import open_store

    for name in push_sets(open_store(store), names):
        click.echo(f"{name}: in {store}")


@group.command()
@click.argument("store")
@click.argument("names", metavar="[SET]...", nargs=-1)
def pull(store: str, names: tuple[str, ...]) -> None:
    """Download the pinned weight sets from STORE to the weights folder.

    Default: all pinned sets. Run it in the root of the repository.
    """
    from mrmodel.encoders.weights_lock import pull_sets
    from mrmodel.stages.paths import PIN_FILE
    from mrmodel.storage import open_store

    brought = pull_sets(open_store(store), Path(PIN_FILE), names)
    click.echo(f"pulled: {', '.join(brought)}" if brought else "nothing to pull")


def _show(name: str, lock: SetLock) -> None:
    from mrmodel.encoders.user_weights import WeightSet

    for source in lock.sources:
        click.echo(f"{source.sha256}  made of {source.file}")
    for file, digest in lock.files.items():
        click.echo(f"{digest}  {file}")
    click.echo(f"locked: {WeightSet(name).folder}")
