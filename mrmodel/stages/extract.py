"""Stage ``extract``: one feature stream of the corpus, of its videos or its sentences."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path

from mrmodel.components import ENCODERS
from mrmodel.config.schema import Config
from mrmodel.data.annotations import MAX_PRETRAINING_RATING
from mrmodel.data.ingest.summary import PRETRAINING
from mrmodel.encoders.weights_lock import require_pinned
from mrmodel.errors import DataError
from mrmodel.features.extraction.extract import ExtractionSummary, extract_texts, extract_videos
from mrmodel.features.extraction.job_runner import ExtractionSettings
from mrmodel.features.importers.importer import copy_store
from mrmodel.progress import Reporter
from mrmodel.stages.paths import SPLITS, Paths
from mrmodel.stages.required_inputs import missing_streams
from mrmodel.stages.runner import run_stage_with
from mrmodel.stages.scorer import read_rows_if_any
from mrmodel.tracking.run import current_run
from mrmodel.video.decoder import VideoLimits

log = logging.getLogger(__name__)


def extract(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``features/<corpus>/<stream>``; ``--stream`` names an encoder.

    The old folder is deleted here, not by DVC (`persist` in dvc.yaml): DVC deletes before anything
    checks the name of a stream.
    """
    paths, stream = Paths(config), arguments["stream"]
    if paths.imported(stream).is_dir():
        shutil.rmtree(paths.stream(stream), ignore_errors=True)
        _bring_in(config, paths, stream)
        return
    if stream not in ENCODERS:
        raise DataError("\n".join(missing_streams(config, paths, (stream,))))
    require_pinned(paths.weight_pins, stream)
    # Partial results there record their inputs; with other inputs extraction starts anew.
    settings = extraction_settings(config, work_folder(config, stream))
    out = paths.stream(stream)
    shutil.rmtree(out, ignore_errors=True)
    if ENCODERS.get(stream).modality == "video":
        clip_len_s = config.features.clip_len_s
        summary = extract_videos(videos_in(paths), stream, clip_len_s, out, settings, reporter)
    else:
        texts = corpus_texts(paths, config.features.clip_len_s)
        summary = extract_texts(texts, stream, out, settings, reporter)
    for key, reason in summary.problems.items():
        log.warning("%s: %s", key, reason)
    log.info(
        "%s: %d rows of %d items (%d partial, %d failed), %.0f rows/s, waiting for frames %.0f %%",
        *(stream, summary.n_rows, summary.n_items, summary.n_partial, summary.n_failed),
        *(summary.rows_per_s, 100 * summary.decode_wait_ratio),
    )
    current_run().log(_figures(summary, ENCODERS.get(stream).modality), 0)


def _figures(summary: ExtractionSummary, modality: str) -> dict[str, float]:
    """Metrics for MLflow: all counts, and the speed."""
    counts = {name: value for name, value in asdict(summary).items() if isinstance(value, int)}
    if modality == "text":
        return counts | {"rows_per_s": summary.rows_per_s}
    speed = {"clips_per_s": summary.rows_per_s, "decode_wait_ratio": summary.decode_wait_ratio}
    return counts | speed


def _bring_in(config: Config, paths: Paths, stream: str) -> None:
    source, out = paths.imported(stream), paths.stream(stream)
    manifest = copy_store(source, out, stream, config.features.clip_len_s)
    rows = sum(shard.rows for shard in manifest.shards)
    log.info("%s: %d rows of %s", stream, rows, source)
    current_run().log({"n_rows": rows}, 0)


def extraction_settings(config: Config, work_dir: Path) -> ExtractionSettings:
    """Extraction settings of a stream from params.yaml."""
    return ExtractionSettings(
        work_dir=work_dir,
        workers=config.features.workers,
        max_failed_share=config.features.max_failed_share,
        limits=VideoLimits(max_duration_s=config.features.max_duration_s),
    )


def work_folder(config: Config, stream: str) -> Path:
    """Folder of a stream's partial results, its own and those of shards."""
    return Paths(config).state / "resume" / f"extract-{config.corpus.name}-{stream}"


def videos_in(paths: Paths) -> dict[str, Path]:
    """Video id -> file for all videos of the corpus."""
    files = sorted(paths.videos.iterdir())
    return {path.stem: path for path in files if not path.name.startswith(".")}


def corpus_texts(paths: Paths, clip_len_s: float) -> list[str]:
    """Every sentence that a stage looks up: queries of all splits, and selected captions."""
    # Imports pandas, which worker processes of video streams do not need.
    from mrmodel.pretraining.intervid.selection import selected_texts

    splits = (paths.split(name) for name in (*SPLITS, *PRETRAINING))
    rows = [row for path in splits for row in read_rows_if_any(path, clip_len_s)]
    captioned = paths.video_captions / "train.jsonl"
    if captioned.exists():
        rows += read_rows_if_any(captioned, clip_len_s, MAX_PRETRAINING_RATING)
    return [row.query for row in rows] + selected_texts(paths.intervid_select)


if __name__ == "__main__":
    run_stage_with(extract, ("stream",))
