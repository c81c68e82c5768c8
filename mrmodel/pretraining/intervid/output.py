"""The output folder of InterVid-MR: samples, labels table, rejects, report, manifest."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrmodel.config.intervid import IntervidSettings
from mrmodel.features.store import FeatureStore, RowTable
from mrmodel.files import atomic_path, digest_of, sha256_of, write_json, write_jsonl, write_text
from mrmodel.pretraining.intervid.caption_rules import caption_words
from mrmodel.pretraining.intervid.group_rules import OUTCOMES, QID_COLLISION
from mrmodel.pretraining.intervid.report import (
    CARD_FILE,
    MARKDOWN_FILE,
    PLOT_COLUMNS,
    IntervidReport,
    card_markdown,
    csv_text,
    data_card,
)
from mrmodel.pretraining.intervid.samples import Features, LabelledShard

FORMAT = 2
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "val")
_LABELS_FILE, _REJECTS_FILE = "labels.parquet", "rejects.jsonl"
# Settings that do not affect the result.
_EXECUTION_ONLY = {"workers", "chunk_rows"}


class SampleFiles:
    """Writes the samples of shard after shard; a context manager that renames the files at its end.

    Args:
        out: target folder.
        annotators: number of equal grade columns.
    """

    def __init__(self, out: Path, annotators: int) -> None:
        self._out, self._annotators = out, annotators
        self._stack = ExitStack()
        self._texts: dict[str, IO[str]] = {}
        self._labels: Any = None

    def __enter__(self) -> SampleFiles:
        for split in SPLITS:
            path = self._stack.enter_context(atomic_path(self._out / f"{split}.jsonl"))
            self._texts[split] = self._stack.enter_context(path.open("w", encoding="utf-8"))
        path = self._stack.enter_context(atomic_path(self._out / _LABELS_FILE))
        file = self._stack.enter_context(path.open("wb"))
        self._labels = self._stack.enter_context(pq.ParquetWriter(file, _LABELS_SCHEMA))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, shard: LabelledShard) -> None:
        """Append the samples of a shard; shards come in the order of qids."""
        for split, file in self._texts.items():
            rows = shard.annotations(split, self._annotators)
            lines = (json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
            file.writelines(lines)
        table = _labels_table(shard)
        if len(table):
            self._labels.write_table(table)


def write_rejects(out: Path, filter_rejects: Path, unused: Iterable[dict[str, Any]]) -> None:
    """Write rejects.jsonl by line: malformed rows, and kept captions that gave no sample.

    Rows that a rule removed are in the table of the filter alone.

    Args:
        out: target folder.
        filter_rejects: rejects.parquet of the filter.
        unused: rows of the captions that were kept and gave no sample.
    """
    ordered = sorted(unused, key=itemgetter("line"))
    rows = heapq.merge(_malformed(filter_rejects), ordered, key=itemgetter("line"))
    write_jsonl(out / _REJECTS_FILE, rows)


def write_report(
    out: Path,
    settings: IntervidSettings,
    inputs: dict[str, Any],
    report: IntervidReport,
    floor: float,
) -> None:
    """Write report, metrics, plots, the data card and, last, the manifest.

    Args:
        out: target folder, with the samples.
        settings: of the run.
        inputs: digests of everything that was read.
        report: of the run.
        floor: its std floor.
    """
    write_json(out / "report.json", asdict(report))
    write_json(out / "metrics.json", report.metrics)
    for name, columns in PLOT_COLUMNS.items():
        rows = report.distributions.get(name, [])
        write_text(out / "plots" / f"{name}.csv", csv_text(rows, columns))
    chosen = settings.model_dump(mode="json", exclude=_EXECUTION_ONLY)
    files = [*(f"{split}.jsonl" for split in SPLITS), _LABELS_FILE, _REJECTS_FILE]
    manifest = {
        "format": FORMAT,
        "state": report.state,
        "preset": settings.preset,
        "settings": chosen,
        "settings_digest": digest_of(chosen),
        "caption_words_version": caption_words().version,
        "inputs": inputs,
        "sd_floor": floor,
        "counts": report.counts,
        "outputs": {name: sha256_of(out / name) for name in files},
    }
    card = data_card(settings, manifest, report.distributions)
    write_json(out / CARD_FILE, card)
    write_text(out / MARKDOWN_FILE, card_markdown(card))
    write_json(out / MANIFEST_FILE, manifest)


def input_digests(selection: dict[str, Any], features: Features | None) -> dict[str, Any]:
    """Digests of the table, the excluded videos, the selection and the features."""
    return {
        "table": selection["filter"]["table"],
        "excluded": selection["filter"]["excluded"],
        "selected": selection["selected_sha256"],
        "clip_len_s": None if features is None else features.clip_len_s,
        "clips": None if features is None else _store_digest(features.clips),
        "texts": None if features is None else _store_digest(features.texts),
    }


def _malformed(path: Path) -> Iterator[dict[str, Any]]:
    """Malformed rows and those with the qid of another row, by line."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            collided = pc.equal(batch["reason"], OUTCOMES[QID_COLLISION])
            for row in batch.filter(pc.or_(pc.is_valid(batch["detail"]), collided)).to_pylist():
                yield {name: value for name, value in row.items() if value is not None}


def _labels_table(shard: LabelledShard) -> pa.Table:
    """Labelling details of each sample, ascending in qid; invalid clips have similarity NaN."""
    chosen = shard.indices(*SPLITS)
    return pa.table(
        {name: pa.array(read(shard, chosen), kind) for name, (kind, read) in _COLUMNS.items()},
        schema=_LABELS_SCHEMA,
    )


def _similarities(shard: LabelledShard, chosen: Any) -> list[Any]:
    scores = shard.scored.similarities
    score = np.where(scores.valid, scores.score, np.nan).astype(np.float32)
    return [score[shard.clips(index)] for index in chosen.tolist()]


Reader = Callable[[LabelledShard, Any], Any]


def _text_column(name: str) -> Reader:
    return lambda shard, chosen: shard.rows[name].take(pa.array(chosen)).to_pylist()


def _number_column(name: str, scale: float) -> Reader:
    return lambda shard, chosen: shard.rows[name].to_numpy()[chosen] * scale


_COLUMNS: dict[str, tuple[Any, Reader]] = {
    "qid": (pa.int64(), _number_column("qid", 1)),
    "split": (pa.string(), lambda shard, chosen: shard.split[chosen].tolist()),
    "vid": (pa.string(), lambda shard, chosen: [shard.vids[index] for index in chosen]),
    "video_id": (pa.string(), _text_column("video_id")),
    "line": (pa.int64(), _number_column("line", 1)),
    "similarity": (pa.list_(pa.float32()), _similarities),
    "mean": (pa.float64(), lambda shard, chosen: shard.labels.mean[chosen]),
    "sd": (pa.float64(), lambda shard, chosen: shard.labels.sd[chosen]),
    "threshold": (pa.float64(), lambda shard, chosen: shard.labels.threshold[chosen]),
    "source_start_s": (pa.float64(), _number_column("start_ms", 1e-3)),
    "source_end_s": (pa.float64(), _number_column("end_ms", 1e-3)),
    "interval_cut": (
        pa.bool_(),
        lambda shard, chosen: shard.scored.segments.lost_ms[chosen] > 0,
    ),
    "umt_score": (pa.float64(), _number_column("umt", 1.0)),
    "duration_estimated": (pa.bool_(), lambda shard, chosen: shard.scored.estimated[chosen]),
}
_LABELS_SCHEMA = pa.schema({name: kind for name, (kind, _) in _COLUMNS.items()})


def _store_digest(rows: RowTable) -> str | None:
    """Digest of a store's manifest, which holds the shards' SHA-256; None for rows in memory."""
    if not isinstance(rows, FeatureStore):
        return None
    return digest_of(rows.manifest.model_dump(mode="json"))
