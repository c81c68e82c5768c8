"""Speed of InterVid-MR: filter and selection of a caption table, similarities and labels.

Run ``python -m benchmarks.intervid [--rows N | --table FILE] [--segments N] [--workers N]
[--json]``. `filter` reads a table (of `benchmarks.caption_tables`) from disk, applies all rules and
selects; `score` is eq. 16 to 18 from features in memory (512-d float16, 40 to 75 clips) to grades
and windows, by the functions of the stage; `label` is the part of it after the similarities, beside
a plain loop over segments written here. CPU seconds are those of all processes, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa

from benchmarks.caption_tables import write_table
from mrmodel.config.intervid import INTERVID_PRESETS, IntervidSettings
from mrmodel.features.keys import text_key
from mrmodel.features.store import MemoryStore
from mrmodel.files import folder_bytes, read_yaml
from mrmodel.pretraining.intervid.decontaminate import Excluded
from mrmodel.pretraining.intervid.filtering import FilterJob, filter_captions
from mrmodel.pretraining.intervid.group_rules import KEPT_SCHEMA
from mrmodel.pretraining.intervid.labelling import Similarities, label
from mrmodel.pretraining.intervid.samples import Features, score_shard
from mrmodel.pretraining.intervid.selection import select_captions
from mrmodel.progress import NullReporter

CLIPS, DIM, BLOCK = 75, 512, 4096
SELECTED = 250_000


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--table", type=Path, help="a table that is there already")
    parser.add_argument("--segments", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()
    settings = read_settings(options.workers)
    with tempfile.TemporaryDirectory(dir=options.table and options.table.parent) as folder:
        table = options.table or Path(folder) / "captions.jsonl"
        if options.table is None:
            write_table(table, options.rows)
        figures = measure_filter(table, Path(folder) / "out", settings)
    figures |= peak_mb()
    figures |= measure_scores(min(options.segments, 4000), settings)
    figures |= measure_labels(options.segments, settings)
    figures = {"benchmark": "intervid", **figures}
    if options.json:
        print(json.dumps(figures, allow_nan=False))
    else:
        print(", ".join(f"{name} {value}" for name, value in figures.items()))


def read_settings(workers: int) -> IntervidSettings:
    """The preset `robust` of params.yaml, three captions a video."""
    params = Path(__file__).resolve().parents[1] / "params.yaml"
    tree = read_yaml(params)["intervid"]
    tree |= {"preset": "robust", "workers": workers, "max_captions": SELECTED}
    tree["captions"]["max_per_video"] = 3
    for (section, field), value in INTERVID_PRESETS["robust"].items():
        tree[section][field] = value
    return IntervidSettings.model_validate(tree)


def measure_filter(table: Path, out: Path, settings: IntervidSettings) -> dict[str, Any]:
    """From a table on disk to the selected rows: time, and the largest size of what is written."""
    reporter = DiskReporter(out)

    def run() -> dict[str, Any]:
        job = FilterJob(table, Excluded.of({"none": []}), out / "filter", out / "work")
        record = filter_captions(job, settings, reporter)
        select_captions(out / "filter", settings, 2.0, out / "select")
        return record

    out.mkdir()
    cpu, wall, record = timed(run)
    rows = record["rows"]["read"]
    return {
        "rows": rows,
        "kept": record["kept"]["captions"],
        "workers": settings.workers,
        "filter_cpu_s": round(cpu, 1),
        "filter_wall_s": round(wall, 1),
        "filter_rows_per_cpu_s": round(rows / cpu),
        "input_mb": table.stat().st_size >> 20,
        "disk_mb": max(reporter.largest, folder_bytes(out)) >> 20,
    }


def peak_mb() -> dict[str, int]:
    """Largest resident memory of this process and of the largest worker, so far."""
    of = {"peak_mb": resource.RUSAGE_SELF, "peak_worker_mb": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(who).ru_maxrss >> 10 for name, who in of.items()}


def measure_scores(segments: int, settings: IntervidSettings) -> dict[str, Any]:
    """Segments a second from features to grades and windows."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(40, CLIPS + 1, segments)
    videos = {
        f"v{index:010d}": rng.normal(size=(length, DIM)).astype(np.float16)
        for index, length in enumerate(lengths.tolist())
    }
    captions = [f"caption {index}" for index in range(segments)]
    texts = {text_key(text): rng.normal(size=(1, DIM)) for text in captions}
    start = (rng.random(segments) * (2000 * lengths - 20_000)).astype(np.int32)
    rows = {
        "line": np.arange(segments),
        "qid": np.arange(segments),
        "video_id": list(videos),
        "caption": captions,
        "start_ms": start,
        "end_ms": start + rng.integers(8000, 20_000, segments).astype(np.int32),
        "umt": np.full(segments, 0.5),
        "table_end_ms": (2000 * lengths).astype(np.int32),
    }
    table = pa.table(rows, schema=KEPT_SCHEMA)
    features = Features(MemoryStore("v", videos, 2.0), MemoryStore("t", texts), 2.0)
    known = features.video_ids()

    def run() -> Any:
        return label(score_shard(table, features, known, settings).similarities, settings.labels)

    cpu = min(timed(run)[0] for _ in range(3))
    return {"score_segments_per_s": round(segments / cpu)}


def measure_labels(segments: int, settings: IntervidSettings) -> dict[str, Any]:
    """Segments a second from similarities to grades and windows, and of the plain loop."""
    shards = [random_similarities(BLOCK, seed) for seed in range(max(1, segments // BLOCK))]
    rules = settings.labels
    flat = min(timed(lambda: [label(shard, rules, 0.01) for shard in shards])[0] for _ in range(3))
    loop, _, grades = timed(lambda: label_loop(shards[0], 0.01))
    if not np.array_equal(label(shards[0], rules, 0.01).grade, grades):
        raise SystemExit("the flat form and the plain loop disagree")
    return {
        "label_segments_per_s": round(BLOCK * len(shards) / flat),
        "loop_segments_per_s": round(BLOCK / loop),
        "label_speedup": round(loop / flat * len(shards), 1),
    }


def random_similarities(segments: int, seed: int) -> Similarities:
    """Segments whose annotated clips are a little more similar than the others."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, CLIPS - 10, segments)[:, None]
    place = np.arange(CLIPS)
    annotated = (place >= first) & (place < first + rng.integers(4, 10, segments)[:, None])
    score = rng.normal(0.22, 0.03, annotated.shape) + 0.08 * annotated
    return Similarities(
        np.arange(segments + 1) * CLIPS,
        score.astype(np.float32).astype(np.float64).ravel(),
        np.ones(score.size, dtype=bool),
        annotated.ravel(),
        np.ones(segments, dtype=bool),
    )


def label_loop(similarities: Similarities, floor: float) -> np.ndarray:
    """Grades of the preset `robust`, one segment and one run at a time."""
    grades = np.zeros(len(similarities.score), dtype=np.int8)
    for first, last in zip(similarities.offsets, similarities.offsets[1:], strict=False):
        score, annotated = similarities.score[first:last], similarities.annotated[first:last]
        sd = max(score[annotated].std(), floor)
        positive = score >= score[annotated].mean() - 3 * sd - 1e-6
        mean, sd = score[positive].mean(), max(score[positive].std(), floor)
        own = 1 + sum((score - mean > edge).astype(np.int8) for edge in (-1.5 * sd, 0, 1.5 * sd))
        windows: list[list[int]] = []
        for clip in np.flatnonzero(positive).tolist():
            if windows and clip - windows[-1][1] <= 2:
                windows[-1][1] = clip
            else:
                windows.append([clip, clip])
        for start, end in windows:
            if end > start or annotated[start : end + 1].any():
                part = slice(start, end + 1)
                grades[first:last][part] = np.where(positive[part], own[part], 1)
    return grades


class DiskReporter(NullReporter):
    """Keeps the largest size of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.largest = folder, 0

    def advance(self, steps: int = 1, **info: object) -> None:
        """Look at the folder."""
        self.largest = max(self.largest, folder_bytes(self.folder))


def cpu_s() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    of = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in of)


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds, wall seconds and result."""
    cpu, wall = cpu_s(), time.perf_counter()
    result = work()
    return cpu_s() - cpu, time.perf_counter() - wall, result


if __name__ == "__main__":
    main()
