"""``mrmodel index``: a library of videos, added once and searched together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrmodel.cli.options import DEVICE, LIBRARY, LIBRARY_MODEL, WORKERS, echo_json
from mrmodel.library import DEPTH
from mrmodel.predict.queries import unread_note
from mrmodel.text import clock

if TYPE_CHECKING:
    from mrmodel.library.adder import AddReport
    from mrmodel.library.search import LibraryHit

# Moments of a hit that are printed.
_MOMENTS = 3

_WORKERS = click.option("--workers", type=WORKERS, help="Processes [default: one per core].")


@click.group()
def group() -> None:
    """Encode many videos once, and search them together."""


@group.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@LIBRARY
@LIBRARY_MODEL
@_WORKERS
@click.pass_context
def add(
    context: click.Context,
    paths: tuple[str, ...],
    folder: Path,
    model: str | None,
    workers: int | None,
) -> None:
    """Add videos, or all videos below folders; pointers to videos in S3 (.s3) are videos.

    What the library knows is not encoded again: unchanged files are skipped, and moved, renamed and
    copied ones are recognised by their content. Run the command again after an interruption: it
    goes on where it stopped. Subtitles (.srt, .vtt) beside a video and in it are indexed.

    The first call makes the library, for the encoders of the model. Files that cannot be used are
    listed, and the exit code is 2 if there are any.
    """
    from mrmodel.library.adder import AddSettings
    from mrmodel.library.library import Library
    from mrmodel.progress import RichReporter

    library = Library.open(folder, model)
    report = library.add(paths, AddSettings(workers or 0), RichReporter())
    _tell(context, report, library.note)


@group.command()
@LIBRARY
@LIBRARY_MODEL
@_WORKERS
@click.pass_context
def refresh(context: click.Context, folder: Path, model: str | None, workers: int | None) -> None:
    """Look at all files again, and add what is new in folders that were added.

    Changed files are encoded again, and failed ones tried again. With --model, or after an update
    that changed an encoder, every video is encoded for the streams that are lacking. Until that is
    done, searches use the old rows.

    Files that are gone are listed and stay searchable (`remove` forgets them). The exit code is 2
    if there are any, or files that cannot be used.
    """
    from mrmodel.library.adder import AddSettings
    from mrmodel.library.library import Library
    from mrmodel.progress import RichReporter

    library = Library.open(folder, model)
    _tell(context, library.refresh(AddSettings(workers or 0), RichReporter()), library.note)


@group.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@LIBRARY
def remove(paths: tuple[str, ...], folder: Path) -> None:
    """Forget files, or all files below folders; the files themselves stay."""
    from mrmodel.library.library import Library

    for path in Library.open(folder).remove(paths):
        click.echo(f"removed: {path}")


@group.command(name="list")
@LIBRARY
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file.")
def list_command(folder: Path, as_json: bool) -> None:
    """Show the files of the library."""
    from mrmodel.library.library import Library

    entries = Library.open(folder).files()
    for entry in entries:
        if as_json:
            echo_json(entry.as_row())
            continue
        said = f", {entry.n_sentences} sentences" if entry.n_sentences else ""
        why = f" ({entry.reason})" if entry.reason else ""
        click.echo(f"{clock(entry.duration_s):>12}  {entry.status}{why}{said}  {entry.path}")
    if not as_json:
        click.echo(f"{folder}: {len(entries)} files")


@group.command()
@click.argument("queries", metavar="QUERY...", nargs=-1, required=True)
@LIBRARY
@LIBRARY_MODEL
@DEVICE
@click.option(
    "--top", type=click.IntRange(1), default=10, show_default=True, help="Videos for each query."
)
@click.option(
    "--depth",
    type=click.IntRange(1),
    default=DEPTH,
    show_default=True,
    help="Videos that the model looks into, for each query.",
)
@click.option("--exhaustive", is_flag=True, help="Let the model look into all videos.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per hit.")
def search(
    queries: tuple[str, ...],
    folder: Path,
    model: str | None,
    device: str,
    top: int,
    depth: int,
    exhaustive: bool,
    as_json: bool,
) -> None:
    """Find videos, and the moments in them, that each QUERY (a sentence) describes.

    Candidates are retrieved by the similarity of pictures and sentence and by what is said in the
    videos. The model then looks into the best ones and finds the moments. A hit shows its best
    moments and the sentence that was said, if one fits.
    """
    from mrmodel.library.library import Library

    library = Library.open(folder, model, device)
    answers = library.search(queries, top, depth=depth, exhaustive=exhaustive)
    notes = dict.fromkeys([library.note] if library.note else [])
    for number, answer in enumerate(answers):
        if not as_json:
            click.echo(answer.query)
        for hit in answer.hits:
            if as_json:
                echo_json(hit.as_row(number))
            else:
                _show(hit)
        notes |= dict.fromkeys(answer.notes)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    for answer in answers:
        if answer.hits and answer.hits[0].result.unread_tokens:
            told = unread_note(answer.hits[0].result, library.languages)
            click.echo(f"note: {told}", err=True)


def _show(hit: LibraryHit) -> None:
    """Print a hit for people."""
    click.echo(f"{hit.rank:3}. {hit.path}")
    for moment in hit.result.moments[:_MOMENTS]:
        window = f"{clock(moment.start_s)} to {clock(moment.end_s)}"
        click.echo(f"       {window}   score {moment.score:.2f}")
    if hit.evidence is not None:
        click.echo(f"       said at {clock(hit.evidence.start_s)}: {hit.evidence.text}")


def _tell(context: click.Context, report: AddReport, note: str) -> None:
    """Print what was done; exit code 2 if files could not be used."""
    for path, old in report.moved.items():
        click.echo(f"moved: {old} -> {path}")
    for path, other in report.duplicates.items():
        click.echo(f"same content: {path} = {other}")
    for path in report.missing:
        click.echo(f"gone: {path}")
    for path, why in (report.problems | report.notes).items():
        click.echo(f"problem: {path}: {why}")
    counts = {
        "encoded": len(report.encoded),
        "moved": len(report.moved),
        "copies": len(report.duplicates),
        "unchanged": report.unchanged,
        "removed": report.removed,
        "gone": len(report.missing),
        "problems": len(report.problems) + len(report.notes),
    }
    shown = [f"{count} {name}" for name, count in counts.items() if count]
    click.echo(", ".join(shown) or "nothing to do")
    if note:
        click.echo(f"note: {note}", err=True)
    if report.problems or report.notes or report.missing:
        context.exit(2)
