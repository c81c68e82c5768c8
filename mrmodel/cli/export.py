"""``mrmodel cut``: files out of what a search found in videos."""

from __future__ import annotations

from pathlib import Path

import click

from mrmodel.addresses import video_path
from mrmodel.errors import MISTAKE
from mrmodel.export.formats import FORMATS, LOCAL_FILES
from mrmodel.export.hits import read_hits


@click.command("cut")
@click.argument("video", required=False)
@click.option(
    "--hits",
    "hits_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    required=True,
    help="Search results, as `mrmodel predict --json` prints them; - is the standard input.",
)
@click.option("--top", type=click.IntRange(1), help="Hits of each query [default: all].")
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
@click.option(
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the files.",
)
@click.option("--overwrite", is_flag=True, help="Replace files of an earlier export.")
@click.option(
    "--label-studio-address",
    default=LOCAL_FILES,
    show_default=True,
    help="What stands before the path of a video in the tasks for Label Studio.",
)
def cut(
    video: str | None,
    hits_file: Path,
    top: int | None,
    formats: tuple[str, ...],
    exact: bool,
    folder: Path,
    overwrite: bool,
    label_studio_address: str,
) -> None:
    """Write what was found in VIDEO as clips, tables, chapters, edit lists or labelling tasks.

    Clips are copied without loss, from the key frame before a hit to where the file can be cut
    after it; hits.json says what each shows. With --exact they are encoded again (H.264 and AAC).

    --hits takes search results of any number of videos. VIDEO is then the file of rows that name
    none.
    """
    path = None if video is None else video_path(video)
    source = Path("/dev/stdin") if str(hits_file) == "-" else hits_file
    hits = read_hits(source, path, top)
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
