"""`mrmodel features`: inspect, verify and compare feature stores, import published archives."""

from __future__ import annotations

from pathlib import Path

import click

from mrmodel.cli.options import CLIP_LEN, FILE, FOLDER, NEW_FOLDER, FiniteRange
from mrmodel.components import LAYOUTS


@click.group()
def group() -> None:
    """Inspect, verify and compare feature stores, import published archives."""


@group.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--annotations", type=FILE, help="Every query of this file must have features.")
@click.pass_context
def verify(context: click.Context, folder: Path, annotations: Path | None) -> None:
    """Check hashes, offsets, values and coverage of the feature store DIR.

    Lists every problem; the exit code is 2 if there is any. Videos whose pictures start later than
    their file are named too.
    """
    from mrmodel.data.feature_check import late_starts, verify_store

    findings = verify_store(folder, annotations)
    for finding in [*findings, *([] if findings else late_starts(folder))]:
        click.echo(finding)
    click.echo(f"{folder}: {len(findings)} findings" if findings else f"{folder}: sound")
    if findings:
        context.exit(2)


@group.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
def info(folder: Path) -> None:
    """Show what the feature store DIR holds and how it was made."""
    from mrmodel.data.feature_check import describe_store

    for name, value in describe_store(folder).items():
        click.echo(f"{name}: {value}")


@group.command()
@click.argument("a", metavar="A", type=FOLDER)
@click.argument("b", metavar="B", type=FOLDER)
def compare(a: Path, b: Path) -> None:
    """Compare the rows of the feature stores A and B that have the same key and position.

    Prints numbers of keys and rows, cosines, and the largest difference of two values.
    """
    from mrmodel.features.compare import compare_stores, format_comparison

    click.echo(format_comparison(compare_stores(a, b)))


@group.command(name="import")
@click.argument("source", metavar="SRC", type=FOLDER)
@click.option("--layout", required=True, type=click.Choice(list(LAYOUTS)))
@click.option(
    "--corpus", required=True, type=FOLDER, help="Folder of train.jsonl, val.jsonl, test.jsonl."
)
@click.option(
    "--output",
    required=True,
    type=NEW_FOLDER,
    help="Output folder, one store per stream.",
)
@click.option("--stream", "streams", multiple=True, help="Only this stream; may be repeated.")
@click.option("--clip-len", type=CLIP_LEN, help="Seconds per video feature.")
@click.option("--word-vectors", type=FILE, help="GloVe text file, for streams of word vectors.")
@click.option(
    "--max-failed-share",
    type=FiniteRange(0.0, 1.0),
    default=0.0,
    show_default=True,
    help="The import fails if a larger fraction of annotated ids has no features.",
)
@click.option("--strict", is_flag=True, help="Also fail on files without an annotated id.")
def import_command(
    source: Path,
    layout: str,
    corpus: Path,
    output: Path,
    streams: tuple[str, ...],
    clip_len: float | None,
    word_vectors: Path | None,
    max_failed_share: float,
    strict: bool,
) -> None:
    """Create feature stores from the published archive that is unpacked in SRC.

    Imports the videos and sentences of the corpus and lists every id without features.
    """
    from mrmodel.data.feature_check import corpus_clip_len, corpus_rows
    from mrmodel.features.importers.importer import (
        FeatureImportRequest,
        format_report,
        import_archive,
    )
    from mrmodel.progress import RichReporter

    request = FeatureImportRequest(
        layout=layout,
        source=source,
        output=output,
        streams=streams,
        clip_len_s=clip_len or LAYOUTS.get(layout).clip_len_s or corpus_clip_len(corpus),
        word_vectors=word_vectors,
        max_failed_share=max_failed_share,
        strict=strict,
    )
    for report in import_archive(request, corpus_rows(corpus), RichReporter()):
        click.echo(format_report(report))
