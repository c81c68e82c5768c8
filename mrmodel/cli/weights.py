"""``mrmodel weights``: checkpoints of other programs, of models and of encoders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrmodel.convert.settings import FORMATS
from mrmodel.encoders.user_weights import PUBLISHED

if TYPE_CHECKING:
    from mrmodel.encoders.user_weights import SetLock

_PATH = click.Path(path_type=Path)


@click.group()
def group() -> None:
    """Checkpoints of other programs: models to import, encoder weights to convert and check."""


@group.command(name="import")
@click.argument("file", type=_PATH)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="auto: as the names of the tensors say.",
)
@click.option("--output", type=_PATH, required=True, help="Model folder to write.")
@click.option(
    "--video-streams",
    help="In order: NAME of an encoder, or NAME:WIDTH of other rows; commas between.",
)
@click.option("--text-streams", help="Likewise, for sentences.")
@click.option("--heads", type=click.IntRange(1), help="Attention heads.")
@click.option(
    "--clip-len", "clip_len_s", type=click.FloatRange(0, min_open=True), help="Seconds of a clip."
)
@click.option(
    "--max-clips", type=click.IntRange(1), help="Clips of a video that the model sees at once."
)
@click.option(
    "--max-tokens", type=click.IntRange(1), help="Tokens of a sentence; longer ones are cut."
)
@click.option("--legacy", is_flag=True, help="Repeat the published quirks (legacy_* settings).")
@click.option("--force", is_flag=True, help="Replace the model that the folder holds.")
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
    """Turn the published checkpoint FILE into a model folder, without running code of the file.

    Sizes are read off the tensors, the rest off the options that FILE holds; an option here wins.
    Where a tensor does not fit, nothing is written and the exit code is 2.
    """
    from mrmodel.convert.checkpoint import ImportRequest, format_report, import_checkpoint
    from mrmodel.convert.streams import parse_streams

    request = ImportRequest(
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
@click.option("--vocabulary", type=_PATH, help="Published vocabulary, for sets that read text.")
@click.option(
    "options",
    "--option",
    multiple=True,
    metavar="NAME=VALUE",
    help="A choice in config.json; may be given more than once.",
)
@click.option("--force", is_flag=True, help="Replace the set that is there.")
def convert(
    name: str, weights: Path, vocabulary: Path | None, options: tuple[str, ...], force: bool
) -> None:
    """Turn published encoder weights into a weight set, without running code of the files.

    It is written below the folder that MRMODEL_WEIGHTS_DIR names, and locked by SHA-256.
    """
    from mrmodel.convert.encoders.convert import Conversion, parse_options
    from mrmodel.convert.encoders.convert import convert as convert_set

    chosen = parse_options(options)
    _show(name, convert_set(Conversion(name, weights, vocabulary, chosen, replace=force)))


@group.command()
@click.argument("name", metavar="SET")
def lock(name: str) -> None:
    """Lock the weight set SET as it is now, say after its config.json was changed by hand.

    Features that were made before keep their fingerprint and no longer fit.
    """
    from mrmodel.convert.encoders.convert import lock_again

    _show(name, lock_again(name))


@group.command()
@click.argument("names", metavar="[SET]...", nargs=-1)
@click.pass_context
def verify(context: click.Context, names: tuple[str, ...]) -> None:
    """Check all weights against their SHA-256: those of the packages, and the sets SET.

    Without a name all sets that are there. The exit code is 2 where something is wrong.
    """
    from mrmodel.convert.encoders.verify import verify_weights

    findings = verify_weights(names)
    for finding in findings:
        click.echo(finding.line)
    if not all(finding.sound for finding in findings):
        context.exit(2)


@group.command()
@click.argument("names", metavar="[SET]...", nargs=-1)
def pin(names: tuple[str, ...]) -> None:
    """Make the weight sets SET those of this project: encoder_weights.lock, which DVC watches.

    Without a name all sets that are there. Run it in the root of the repository.
    """
    from mrmodel.encoders.weights_lock import pin_sets
    from mrmodel.stages.paths import PIN_FILE

    for name in pin_sets(Path(PIN_FILE), names):
        click.echo(f"{name}: pinned in {PIN_FILE}")


@group.command()
@click.argument("store")
@click.argument("names", metavar="[SET]...", nargs=-1)
def push(store: str, names: tuple[str, ...]) -> None:
    """Bring weight sets into STORE (s3://bucket/prefix or a folder), for other machines to pull.

    Without a name all sets that are there.
    """
    from mrmodel.encoders.weights_lock import push_sets
    from mrmodel.storage import open_store

    for name in push_sets(open_store(store), names):
        click.echo(f"{name}: in {store}")


@group.command()
@click.argument("store")
@click.argument("names", metavar="[SET]...", nargs=-1)
def pull(store: str, names: tuple[str, ...]) -> None:
    """Fetch the weight sets that this project pins from STORE into the weights folder.

    Without a name all pinned ones. Run it in the root of the repository.
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
