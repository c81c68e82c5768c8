"""Stages ``intervid_filter``, ``intervid_select``, ``intervid_mr``: pre-training queries.

The table of captions is that of the folder ``own_captions``, if there is one, else the corpus's.
"""

from __future__ import annotations

import logging
from pathlib import Path

from mrmodel.config.schema import Config
from mrmodel.errors import FeatureError
from mrmodel.features.manifest import has_sentence_row
from mrmodel.features.store import FeatureStore
from mrmodel.pretraining.intervid.decontaminate import Excluded, read_benchmarks
from mrmodel.pretraining.intervid.filtering import FilterJob, filter_captions
from mrmodel.pretraining.intervid.generate import GenerationJob, generate
from mrmodel.pretraining.intervid.samples import Features
from mrmodel.pretraining.intervid.selection import read_selection_record, select_captions
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.required_inputs import own_table
from mrmodel.stages.runner import run_command
from mrmodel.stages.scorer import read_rows_if_any
from mrmodel.tracking.run import current_run

log = logging.getLogger(__name__)


def intervid_filter(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``data/intervid_filter``: the captions that pass all rules, and why others do not."""
    paths, clip_len_s = Paths(config), config.features.clip_len_s
    evaluation = [paths.split(name) for name in ("val", "test")]
    rows = [row for path in evaluation for row in read_rows_if_any(path, clip_len_s)]
    lists = dict(read_benchmarks(paths.benchmarks, config.intervid.captions.benchmarks))
    # The corpus may be one of them: then all of its splits are out.
    lists.setdefault(config.corpus.name, frozenset())
    lists[config.corpus.name] |= {row.vid for row in rows}
    job = FilterJob(
        table=caption_table(paths),
        excluded=Excluded.of(lists),
        out=paths.intervid_filter,
        work=paths.state / "resume" / "intervid_filter",
    )
    record = filter_captions(job, config.intervid, reporter)
    log.info(
        "InterVid-MR: %d of %d captions kept", record["kept"]["captions"], record["rows"]["read"]
    )
    counts = {f"rules/{name}": count for name, count in record["rules"].items()}
    counts |= {f"kept/{name}": count for name, count in record["kept"].items()}
    current_run().log(counts | {"rows/read": record["rows"]["read"]}, 0)


def intervid_select(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``data/intervid_select``: the captions to use, and the features that they need."""
    paths = Paths(config)
    clip_len_s, out = config.features.clip_len_s, paths.intervid_select
    record = select_captions(paths.intervid_filter, config.intervid, clip_len_s, out)
    log.info("InterVid-MR: selected %s", record["selected"])
    current_run().log({f"selected/{name}": n for name, n in record["selected"].items()}, 0)


def intervid_mr(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``data/intervid_mr``; a corpus without captions gives an empty set."""
    paths = Paths(config)
    captions = read_selection_record(paths.intervid_select)["selected"]["captions"]
    job = GenerationJob(
        filtered=paths.intervid_filter,
        selected=paths.intervid_select,
        features=open_aligned(config, paths) if captions else None,
        out=paths.intervid,
        work=paths.state / "resume" / "intervid_mr",
    )
    report = generate(job, config.intervid, reporter)
    samples = report.counts["samples"]
    log.info("InterVid-MR: %s %s", report.state, report.reason or samples)
    current_run().log({f"samples/{name}": count for name, count in samples.items()}, 0)


def caption_table(paths: Paths) -> Path | None:
    """The table in ``own_captions``, else that of the corpus; None if both have none."""
    has_captions = paths.captions.exists() and paths.captions.stat().st_size > 0
    return own_table(paths) or (paths.captions if has_captions else None)


def open_aligned(config: Config, paths: Paths) -> Features:
    """The first video stream and the first text stream, which must have a joint space (eq. 16).

    Raises:
        FeatureError: the text stream has no sentence vectors.
    """
    clips = FeatureStore(paths.stream(config.features.video_streams[0]))
    texts = FeatureStore(paths.stream(config.features.text_streams[0]))
    if not has_sentence_row(texts.info):
        rule = (
            "no row of it can be compared with clips, as InterVid-MR does; name another one first"
        )
        raise FeatureError(f"features.text_streams: {texts.info.stream}: {rule}")
    return Features(clips, texts, config.features.clip_len_s)


if __name__ == "__main__":
    run_command(
        {
            "intervid_filter": (intervid_filter, ()),
            "intervid_select": (intervid_select, ()),
            "intervid_mr": (intervid_mr, ()),
        }
    )
