"""The output folder of InterVid-MR: samples, labels table, rejects, report, manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mrmodel.config.intervid import IntervidSettings
from mrmodel.features.store import FeatureStore, RowTable
from mrmodel.files import atomic_path, digest_of, sha256_of, write_json, write_jsonl, write_text
from mrmodel.pretraining.intervid.caption_rules import caption_words
from mrmodel.pretraining.intervid.report import PLOT_COLUMNS, IntervidReport, csv_text
from mrmodel.pretraining.intervid.samples import IntervidInputs, Samples

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "val")
# Settings that do not affect the result.
_EXECUTION_ONLY = {"workers", "chunk_rows"}


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """Inputs and results of a finished run; without captions there are no samples."""

    settings: IntervidSettings
    inputs: IntervidInputs
    leak_videos: frozenset[str]
    report: IntervidReport
    samples: Samples | None
    rejects: list[dict[str, Any]]


def write_outcome(out_dir: Path, outcome: GenerationResult) -> None:
    """Write all files, manifest.json last."""
    for split in SPLITS:
        write_jsonl(out_dir / f"{split}.jsonl", _annotations(outcome, split))
    with atomic_path(out_dir / "labels.parquet") as temporary, temporary.open("wb") as file:
        pq.write_table(_labels_table(outcome.samples), file)
    write_jsonl(out_dir / "rejects.jsonl", outcome.rejects)
    write_json(out_dir / "report.json", asdict(outcome.report))
    write_json(out_dir / "metrics.json", outcome.report.metrics)
    for name, columns in PLOT_COLUMNS.items():
        rows = outcome.report.distributions.get(name, [])
        write_text(out_dir / "plots" / f"{name}.csv", csv_text(rows, columns))
    write_json(out_dir / MANIFEST_FILE, _manifest(out_dir, outcome))


def _annotations(outcome: GenerationResult, split: str) -> list[dict[str, Any]]:
    if outcome.samples is None:
        return []
    annotators = outcome.settings.labels.annotators
    indices = outcome.samples.indices(split)
    return [outcome.samples.annotation(index, annotators) for index in indices]


def _labels_table(samples: Samples | None) -> pa.Table:
    """Labelling details of each sample, ascending in qid; invalid clips have similarity NaN."""
    chosen = [] if samples is None else samples.indices(*SPLITS)
    columns = {
        name: pa.array([] if samples is None else read(samples, chosen), kind)
        for name, (kind, read) in _LABEL_COLUMNS.items()
    }
    return pa.table(columns)


def _similarities(samples: Samples, chosen: list[int]) -> list[Any]:
    scores = samples.similarities
    score = np.where(scores.valid, scores.score, np.nan).astype(np.float32)
    return [score[samples.clips(index)] for index in chosen]


Reader = Callable[[Samples, list[int]], Any]


def _row_column(name: str, scale: float = 1.0) -> Reader:
    return lambda samples, chosen: samples.candidates.rows[name].to_numpy()[chosen] * scale


_LABEL_COLUMNS: dict[str, tuple[Any, Reader]] = {
    "qid": (pa.int64(), lambda samples, chosen: [samples.candidates.qid(i) for i in chosen]),
    "split": (pa.string(), lambda samples, chosen: samples.split[chosen]),
    "vid": (pa.string(), lambda samples, chosen: [samples.candidates.vids[i] for i in chosen]),
    "video_id": (
        pa.string(),
        lambda samples, chosen: [samples.candidates.captions[i].video_id for i in chosen],
    ),
    "line": (pa.int64(), _row_column("line", 1)),
    "similarity": (pa.list_(pa.float32()), _similarities),
    "mean": (pa.float64(), lambda samples, chosen: samples.labels.mean[chosen]),
    "sd": (pa.float64(), lambda samples, chosen: samples.labels.sd[chosen]),
    "threshold": (pa.float64(), lambda samples, chosen: samples.labels.threshold[chosen]),
    "source_start_s": (pa.float64(), _row_column("start_ms", 1e-3)),
    "source_end_s": (pa.float64(), _row_column("end_ms", 1e-3)),
    "interval_cut": (
        pa.bool_(),
        lambda samples, chosen: samples.candidates.segments.lost_ms[chosen] > 0,
    ),
    "umt_score": (pa.float64(), _row_column("umt")),
    "duration_estimated": (
        pa.bool_(),
        lambda samples, chosen: samples.candidates.estimated[chosen],
    ),
}


def _manifest(out_dir: Path, outcome: GenerationResult) -> dict[str, Any]:
    settings = outcome.settings.model_dump(mode="json", exclude=_EXECUTION_ONLY)
    files = [*(f"{split}.jsonl" for split in SPLITS), "labels.parquet", "rejects.jsonl"]
    return {
        "schema_version": SCHEMA_VERSION,
        "state": outcome.report.state,
        "preset": outcome.settings.preset,
        "settings": settings,
        "settings_digest": digest_of(settings),
        "caption_words_version": caption_words().version,
        "inputs": _input_digests(outcome),
        "sd_floor": None if outcome.samples is None else outcome.samples.floor,
        "counts": outcome.report.counts,
        "outputs": {name: sha256_of(out_dir / name) for name in files},
    }


def _input_digests(outcome: GenerationResult) -> dict[str, Any]:
    inputs, features = outcome.inputs, outcome.inputs.features
    return {
        "captions": None if inputs.captions is None else sha256_of(inputs.captions),
        "leak_videos": len(outcome.leak_videos),
        "leak_digest": digest_of(sorted(outcome.leak_videos)),
        "clip_len_s": None if features is None else features.clip_len_s,
        "clips": None if features is None else _store_digest(features.clips),
        "texts": None if features is None else _store_digest(features.texts),
    }


def _store_digest(rows: RowTable) -> str | None:
    """Digest of a store's manifest, which holds the shards' SHA-256; None for rows in memory."""
    if not isinstance(rows, FeatureStore):
        return None
    return digest_of(rows.manifest.model_dump(mode="json"))
