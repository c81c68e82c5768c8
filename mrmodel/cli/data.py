"""``mrmodel data`` and ``mrmodel delivery``: annotation files, videos in S3, new training data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from mrmodel.cli.options import CLIP_LEN, FILE, FOLDER, NEW_FOLDER, FiniteRange
from mrmodel.components import DATASETS


@click.group()
def group() -> None:
    """Check and convert annotation files, make pre-training queries, link videos in S3."""


@group.command()
@click.argument("file", type=FILE)
@click.option("--videos", type=FOLDER, help="Folder that must contain every video.")
@click.option(
    "--clip-len",
    type=CLIP_LEN,
    help="Seconds of one clip [default: features.clip_len_s of params.yaml, or 2 where is none].",
)
@click.pass_context
def check(context: click.Context, file: Path, videos: Path | None, clip_len: float | None) -> None:
    """Check and summarise the annotation FILE (JSON lines in the QVHighlights schema).

    Lists every row that the stage `corpus` would leave out, with its line; the exit code is 2 if
    there is any. Rows of val.jsonl and test.jsonl in the folder `corpus.folder` of params.yaml must
    be such that evaluate.protocol can score them. With --videos each video is opened (but not one
    in S3).
    """
    from mrmodel.config.schema import load_protocol
    from mrmodel.data.check import check_file, format_report
    from mrmodel.evaluate.run import unscorable_by

    params = Path("params.yaml")
    protocol = load_protocol(params, file.parent) if params.exists() else None
    unscorable = unscorable_by(protocol) if protocol is not None else None
    report = check_file(file, videos, clip_len or project_clip_len(), unscorable)
    click.echo(format_report(report))
    if report.errors:
        context.exit(2)


def project_clip_len() -> float:
    """Seconds of one clip by the params.yaml of the current folder, if there is one."""
    from mrmodel.config.schema import load_features
    from mrmodel.data.annotations import DEFAULT_CLIP_LEN_S

    params = Path("params.yaml")
    return load_features(params).clip_len_s if params.exists() else DEFAULT_CLIP_LEN_S


@group.command()
@click.argument("dataset", type=click.Choice(list(DATASETS)))
@click.argument("source", type=FOLDER)
@click.option(
    "--output",
    type=NEW_FOLDER,
    default=Path("own_videos"),
    show_default=True,
    help="Output folder of the three splits.",
)
@click.option("--domain", help="Only this domain (TVSum, YouTube Highlights).")
@click.option(
    "--label-grid",
    type=click.Choice(["seconds", "published"]),
    default="seconds",
    show_default=True,
    help="YouTube Highlights: labels by time, or label i for row i of published features.",
)
@click.option(
    "--held-out",
    type=FiniteRange(0.0, 0.5, min_open=True),
    help="Fraction of training videos for model selection, if no published split can be used.",
)
def convert(
    dataset: str,
    source: Path,
    output: Path,
    domain: str | None,
    label_grid: Literal["seconds", "published"],
    held_out: float | None,
) -> None:
    """Write train.jsonl, val.jsonl and test.jsonl from the published files in the folder SOURCE.

    Weights are never selected on the split that metrics are reported on. Invalid rows are skipped
    and listed.
    """
    from mrmodel.data.datasets.convert import ConvertRequest, format_report
    from mrmodel.data.datasets.convert import convert as convert_files

    request = ConvertRequest(dataset, source, output, domain, label_grid, held_out)
    click.echo(format_report(convert_files(request)))
    click.echo(f"written: {output}")


@group.command(name="intervid-mr")
@click.argument("table", type=FILE)
@click.option(
    "--output",
    type=NEW_FOLDER,
    required=True,
    help="Folder of the results; an interrupted build goes on there.",
)
@click.option(
    "--clips",
    type=FOLDER,
    help="Feature store of the videos, or of the segments that are listed without it.",
)
@click.option(
    "--texts",
    type=FOLDER,
    help="Feature store of the captions, in the space of --clips.",
)
@click.option(
    "--exclude",
    "excluded",
    multiple=True,
    type=FILE,
    help="Evaluation videos: annotations (.jsonl) or one id a line. May be repeated.",
)
@click.option(
    "--benchmarks",
    type=NEW_FOLDER,
    default=Path("own_captions/benchmarks"),
    show_default=True,
    help="Published annotation files of intervid.captions.benchmarks, a folder for each.",
)
def intervid_mr(
    table: Path,
    output: Path,
    clips: Path | None,
    texts: Path | None,
    excluded: tuple[Path, ...],
    benchmarks: Path,
) -> None:
    """Make pre-training queries of the captions in TABLE (InternVid's columns).

    The section `intervid` of params.yaml says how. Without --clips and --texts, OUTPUT/select lists
    the captions and the segments of video whose features are needed; with both, OUTPUT/samples
    holds train.jsonl and val.jsonl.
    """
    from mrmodel.config.schema import load_config
    from mrmodel.features.store import FeatureStore
    from mrmodel.pretraining.intervid.decontaminate import (
        Excluded,
        read_benchmarks,
        read_leak_files,
    )
    from mrmodel.pretraining.intervid.generate import build
    from mrmodel.pretraining.intervid.samples import Features
    from mrmodel.progress import RichReporter

    if (clips is None) != (texts is None):
        raise click.UsageError("give --clips and --texts together")
    config = load_config(Path("params.yaml"))
    lists = {path.name: read_leak_files([path]) for path in excluded}
    lists |= read_benchmarks(benchmarks, config.intervid.captions.benchmarks)
    clip_len_s, features = config.features.clip_len_s, None
    if clips is not None and texts is not None:
        features = Features(FeatureStore(clips), FeatureStore(texts), clip_len_s)
    report = build(
        table, Excluded.of(lists), features, output, config.intervid, clip_len_s, RichReporter()
    )
    if report is None:
        click.echo(f"features are needed of: {output / 'select'}")
    else:
        click.echo(f"written: {output / 'samples'}: {report.counts['samples']}")


@group.command()
@click.argument("address")
@click.argument("folder", type=NEW_FOLDER)
@click.pass_context
def link(context: click.Context, address: str, folder: Path) -> None:
    """Write a pointer into FOLDER for each video below ADDRESS (s3://bucket/folder).

    A pointer, <name>.s3, stands for a video file and names the version of the object. Features are
    extracted by reading the object in parts, without a local copy. Run the command again to update
    pointers after objects have changed. No file is removed. The server is AWS, or that of
    MRMODEL_S3_ENDPOINT; credentials are resolved as by the AWS command line.

    A video that cannot be linked is listed, and the exit code is 2.
    """
    from mrmodel.data.ingest.s3_links import format_report, link_videos

    report = link_videos(address, folder)
    click.echo(format_report(report))
    if report.problems:
        context.exit(2)


@click.group()
def delivery_group() -> None:
    """Deliveries of new training data."""


@delivery_group.command(name="check")
@click.argument("folder", type=FOLDER)
@click.option("--rev", default="HEAD", show_default=True, help="Git revision to compare with.")
@click.pass_context
def check_delivery(context: click.Context, folder: Path, rev: str) -> None:
    """Check whether the data in FOLDER would be accepted, and if not, why.

    Compares them with the data of this repository, or of the one in MRMODEL_GIT_URL, as the
    scheduled retraining does. Nothing is changed or uploaded. The exit code is 2 if the delivery
    would be quarantined.
    """
    from mrmodel.orchestrate.environment import RuntimeEnvironment
    from mrmodel.retrain.ingest import check_sent

    report = check_sent(folder, RuntimeEnvironment.from_environment(), rev)
    click.echo(report.markdown(), nl=False)
    if report.state == "quarantined":
        context.exit(2)
