"""``mrmodel cut`` and ``mrmodel highlight``: files out of what a search finds in videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrmodel.addresses import video_path
from mrmodel.cli.options import DEVICE, MODEL, NEW_FILE, NEW_FOLDER, echo_json, echo_notes
from mrmodel.errors import MISTAKE
from mrmodel.export import FORMATS, LOCAL_FILES
from mrmodel.export.chapters import chapters_of
from mrmodel.export.hits import Hit, hits_of, read_hits
from mrmodel.files import write_text
from mrmodel.predict.queries import check_queries

if TYPE_CHECKING:
    from mrmodel.types import QueryResult

_TOP = 5


@click.command("cut")
@click.argument("video", required=False)
@click.option("--query", "queries", multiple=True, help="A sentence to search for; repeatable.")
@click.option(
    "--hits",
    "hits_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Cut these: what predict, highlight or index search printed with --json; - is stdin.",
)
@MODEL
@DEVICE
@click.option(
    "--top",
    type=click.IntRange(1),
    help=f"Hits of each query [default: {_TOP}; all in a file of --hits].",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(list(FORMATS)),
    multiple=True,
    default=["mp4"],
    show_default=True,
    help="Repeatable: " + "; ".join(f"{name}, {what}" for name, what in FORMATS.items()) + ".",
)
@click.option(
    "--exact",
    is_flag=True,
    help="Encode clips again, at most one frame off, instead of copying from key frame on.",
)
@click.option("--output", "folder", type=NEW_FOLDER, required=True, help="Folder for the files.")
@click.option("--overwrite", is_flag=True, help="Replace files of an earlier export.")
@click.option(
    "--label-studio-address",
    default=LOCAL_FILES,
    show_default=True,
    help="What stands before the path of a video in the tasks for Label Studio.",
)
def cut(
    video: str | None,
    queries: tuple[str, ...],
    hits_file: Path | None,
    model: str | None,
    device: str,
    top: int | None,
    formats: tuple[str, ...],
    exact: bool,
    folder: Path,
    overwrite: bool,
    label_studio_address: str,
) -> None:
    """Write what was found in VIDEO as clips, tables, chapters, edit lists or labelling tasks.

    Clips are copied without loss, from the key frame before a hit to where the file can be cut
    after it; the lines printed, and hits.json, say what each shows. With --exact they are encoded
    again (H.264 and AAC).

    --hits takes results about any number of videos. VIDEO is then the file of rows without a path.
    """
    path = None if video is None else video_path(video)
    if (hits_file is None) == (not queries):
        raise click.UsageError("give either --query or --hits")
    if hits_file is not None:
        source = Path("/dev/stdin") if str(hits_file) == "-" else hits_file
        hits = read_hits(source, path, top)
    elif path is None:
        raise click.UsageError("--query needs a VIDEO to search")
    else:
        check_queries(queries)
        hits = hits_of(path, _search(path, queries, model, device), top or _TOP)
    from mrmodel.export.write import export_hits  # FFmpeg takes a while to load.

    made = export_hits(
        hits,
        folder,
        formats,
        exact=exact,
        overwrite=overwrite,
        label_studio_address=label_studio_address,
    )
    shown = {clip.path: (hits[number], clip.spans[0]) for number, clip in made.clips.items()}
    for file in made.files:
        if file not in shown:
            click.echo(file)
            continue
        hit, span = shown[file]
        click.echo(f"{file}  {span.start_s:8.1f} s to {span.end_s:8.1f} s   {hit.query}")
    for note in made.notes:
        click.echo(f"note: {note}", err=True)
    for problem in made.problems:
        click.echo(f"error: {problem}", err=True)
    if made.problems:
        click.get_current_context().exit(MISTAKE)


@click.command("highlight")
@click.argument("video")
@click.option(
    "--queries",
    "queries_file",
    type=NEW_FILE,
    help="Text file of generic queries, one a line [default: those of this package].",
)
@MODEL
@DEVICE
@click.option(
    "--top", type=click.IntRange(1), default=_TOP, show_default=True, help="Highlights to print."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per highlight.")
@click.option("--chapters", type=NEW_FILE, help="Also write them to this file, as WebVTT chapters.")
def highlight(
    video: str,
    queries_file: Path | None,
    model: str | None,
    device: str,
    top: int,
    as_json: bool,
    chapters: Path | None,
) -> None:
    """Find the best moments in VIDEO without a query.

    Each clip is scored by generic queries, such as "people cheering"; the scores of a query are
    standardised over the video, and the mean over the queries counts. A highlight is printed with
    the query that fits it best. `mrmodel cut VIDEO --hits FILE` makes clips of what --json prints.
    """
    path = video_path(video)
    from mrmodel.predict.highlights import highlights_of, read_highlight_queries

    queries = read_highlight_queries(queries_file)
    check_queries(queries)
    found = highlights_of(_search(path, queries, model, device), top)
    hits = [Hit(path, query, moment) for query, moment in found]
    for hit in hits:
        if as_json:
            echo_json(hit.as_row())
            continue
        window = f"{hit.moment.start_s:8.1f} s to {hit.moment.end_s:8.1f} s"
        click.echo(f"{window}   score {hit.moment.score:5.2f}   {hit.query}")
    if chapters is not None:
        write_text(chapters, chapters_of(hits))


def _search(
    path: Path, queries: Sequence[str], model: str | None, device: str
) -> list[QueryResult]:
    """Search results about a video; what is to be known about them goes to the error stream."""
    from mrmodel.stages.served import choose_model

    predictor, why = choose_model(model, [path], device)
    searchable = predictor.encode(path)
    results = predictor.search(searchable, queries)
    echo_notes(predictor, results, [why, *searchable.report.notes()])
    return results
