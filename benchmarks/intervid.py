"""Speed of InterVid-MR: caption rules, similarities and labels on synthetic rows.

Run ``python -m benchmarks.intervid [--rows N] [--segments N] [--workers N] [--json]``.
`filter` reads a table of the InternVid format from disk and applies all rules; `similarity` is
eq. 16 for 512-d vectors; `label` is eq. 17, windows and grades of segments of 75 clips, beside a
plain loop over segments written here. Times are CPU time of one thread, imports aside; with several
workers the wall time of `filter` is the one to read.
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

from mrmodel.config.intervid import IntervidSettings
from mrmodel.files import read_yaml, write_jsonl
from mrmodel.pretraining.intervid.caption_table import filter_captions
from mrmodel.pretraining.intervid.labelling import Similarities, cosine, label_in_blocks
from mrmodel.progress import NullReporter

CLIPS, DIM, BLOCK = 75, 512, 13_000
WORDS = (
    "man, woman, dog, child, car, tree, street, beach, kitchen, red, blue, small, large, walks, "
    "runs, sits, holds, opens, cuts, plays, talks, near, table, window, ball, guitar, image, text"
)


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--segments", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()
    settings = read_settings(options.workers, options.rows // max(2 * options.workers, 1))
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_filter(Path(folder) / "captions.jsonl", options.rows, settings)
    figures |= measure_similarity()
    figures |= measure_labels(options.segments, settings)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    figures = {"benchmark": "intervid", **figures, "peak_rss_mb": peak_mb}
    if options.json:
        print(json.dumps(figures, allow_nan=False))
    else:
        print(", ".join(f"{name} {value}" for name, value in figures.items()))


def read_settings(workers: int, chunk_rows: int) -> IntervidSettings:
    """The preset `robust` of params.yaml."""
    params = Path(__file__).resolve().parents[1] / "params.yaml"
    tree = read_yaml(params)["intervid"]
    tree |= {"preset": "custom", "workers": workers, "chunk_rows": max(chunk_rows, 1)}
    return IntervidSettings.model_validate(tree).with_preset("robust")


def measure_filter(path: Path, rows: int, settings: IntervidSettings) -> dict[str, Any]:
    """Rows a second from a table on disk to the kept rows."""
    write_jsonl(path, caption_rows(rows))
    cpu, wall, table = timed(lambda: filter_captions(path, settings, frozenset(), NullReporter()))
    return {
        "rows": rows,
        "kept": len(table.kept),
        "workers": settings.workers,
        "filter_rows_per_s": round(rows / cpu) if settings.workers == 1 else None,
        "filter_rows_per_wall_s": round(rows / wall),
    }


def measure_similarity() -> dict[str, Any]:
    """Clips a second of eq. 16, features in memory."""
    rng = np.random.default_rng(0)
    segments = 800
    clips = rng.normal(size=(segments * CLIPS, DIM)).astype(np.float32)
    captions = rng.normal(size=(segments, DIM)).astype(np.float32)
    segment = np.repeat(np.arange(segments), CLIPS)
    cpu = min(timed(lambda: cosine(clips, captions, segment))[0] for _ in range(3))
    return {"similarity_clips_per_s": round(len(clips) / cpu)}


def measure_labels(segments: int, settings: IntervidSettings) -> dict[str, Any]:
    """Segments a second from similarities to grades and windows, and of the plain loop."""
    similarities = random_similarities(segments)
    rules = settings.labels
    flat = min(
        timed(lambda: label_in_blocks(similarities, rules, 0.01, BLOCK))[0] for _ in range(3)
    )
    some = min(segments, 2000)
    loop, _, grades = timed(lambda: label_loop(similarities.part(0, some), 0.01))
    same = label_in_blocks(similarities.part(0, some), rules, 0.01, BLOCK).grade
    if not np.array_equal(same, grades):
        raise SystemExit("the flat form and the plain loop disagree")
    return {
        "segments": segments,
        "label_segments_per_s": round(segments / flat),
        "loop_segments_per_s": round(some / loop),
        "label_speedup": round(loop / some * segments / flat, 1),
    }


def caption_rows(count: int) -> list[dict[str, Any]]:
    """Rows with the sizes of InternVid: 10 words, intervals of 2 to 30 s, 8 rows a video."""
    rng = np.random.default_rng(0)
    words = rng.choice(WORDS.split(", "), (count, 14)).tolist()
    lengths, starts = rng.integers(3, 15, count), rng.integers(0, 600_000, count)
    spans = rng.integers(2000, 30_000, count)
    scores, beauty = rng.uniform(0.25, 0.6, count), rng.uniform(3, 6, count)
    return [
        {
            "YoutubeID": f"v{index // 8:010d}",
            "Start_timestamp": timestamp(int(start)),
            "End_timestamp": timestamp(int(start + span)),
            "Caption": "a " + " ".join(text[:length]),
            "UMT_Score": float(score),
            "Aesthetic_Score": float(nice),
        }
        for index, (text, length, start, span, score, nice) in enumerate(
            zip(words, lengths, starts, spans, scores, beauty, strict=True)
        )
    ]


def timestamp(millis: int) -> str:
    """Milliseconds as HH:MM:SS.mmm."""
    seconds, rest = divmod(millis, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"


def random_similarities(segments: int) -> Similarities:
    """Segments whose annotated clips are a little more similar than the others."""
    rng = np.random.default_rng(1)
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


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds, wall seconds and result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - wall, result


if __name__ == "__main__":
    main()
