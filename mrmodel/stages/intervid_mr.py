"""Stage ``intervid_mr``: pre-training queries from the captions of the corpus."""

from __future__ import annotations

import logging

from mrmodel.config.schema import Config
from mrmodel.errors import FeatureError
from mrmodel.features.manifest import has_sentence_row
from mrmodel.features.store import FeatureStore
from mrmodel.pretraining.intervid.generate import Features, IntervidInputs, generate
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_stage
from mrmodel.stages.scorer import read_rows_if_any
from mrmodel.tracking.run import current_run

log = logging.getLogger(__name__)


def intervid_mr(config: Config, reporter: Reporter) -> None:
    """Write ``data/intervid_mr``; a corpus without captions gives an empty set."""
    paths = Paths(config)
    clip_len_s = config.features.clip_len_s
    evaluation = [paths.split(name) for name in ("val", "test")]
    rows = [row for path in evaluation for row in read_rows_if_any(path, clip_len_s)]
    has_captions = paths.captions.exists() and paths.captions.stat().st_size > 0
    inputs = IntervidInputs(
        captions=paths.captions if has_captions else None,
        features=open_aligned(config, paths) if has_captions else None,
        leak_videos=frozenset(row.vid for row in rows),
    )
    report = generate(config.intervid, inputs, paths.intervid, reporter)
    log.info("InterVid-MR: %s %s", report.state, report.counts.get("samples", report.reason))
    samples = report.counts.get("samples", {})
    current_run().log({f"samples/{name}": count for name, count in samples.items()}, 0)


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
    run_stage(intervid_mr)
