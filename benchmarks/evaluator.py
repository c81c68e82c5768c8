"""Speed of the QVHighlights evaluator on a synthetic submission of the validation set's size.

Run ``python -m benchmarks.evaluator [--queries N] [--repeats N] [--json]``. The time is CPU time of
one thread from two JSONL files on disk to the metrics, imports aside; the best of the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from mrmodel.evaluate.qvhighlights import QVHighlights
from mrmodel.evaluate.rows import read_rows
from mrmodel.files import write_jsonl

N_CLIPS, N_WINDOWS, CLIP_LEN_S = 75, 10, 2


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=1550)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.queries, options.repeats)
    if options.json:
        print(json.dumps(figures, allow_nan=False))
    else:
        print(", ".join(f"{name} {value}" for name, value in figures.items()))


def measure(folder: Path, queries: int, repeats: int) -> dict[str, object]:
    """Best CPU seconds of `repeats` evaluations, whole and by step."""
    ground_truth, submission = folder / "gt.jsonl", folder / "preds.jsonl"
    write_submission(ground_truth, submission, queries)
    reads, scores = [], []
    for _ in range(repeats):
        start = time.process_time()
        annotations, predictions = read_rows(ground_truth), read_rows(submission)
        middle = time.process_time()
        metrics = QVHighlights().evaluate(annotations, predictions, "official")
        reads.append(middle - start)
        scores.append(time.process_time() - middle)
    return {
        "benchmark": "evaluator",
        "queries": queries,
        "windows": N_WINDOWS,
        "scores": N_CLIPS,
        "cpu_s": round(min(np.add(reads, scores).tolist()), 4),
        "read_cpu_s": round(min(reads), 4),
        "score_cpu_s": round(min(scores), 4),
        "mr_map": metrics["brief"]["MR-full-mAP"],
    }


def write_submission(ground_truth: Path, submission: Path, queries: int, seed: int = 0) -> None:
    """Random rows with the sizes of QVHighlights val: 1.8 windows and 28 rated clips a query."""
    rng = np.random.default_rng(seed)
    annotations, predictions = [], []
    for qid in range(queries):
        ratings = rng.integers(0, 5, (28, 3)).tolist()
        names = {"qid": qid, "query": f"query {qid}", "vid": f"video{qid // 2}_60.0_210.0"}
        truth = _windows(rng, int(rng.choice([1, 2, 3, 4, 5], p=[0.5, 0.28, 0.14, 0.05, 0.03])))
        annotations.append(
            names
            | {"duration": N_CLIPS * CLIP_LEN_S, "relevant_windows": truth}
            | {"relevant_clip_ids": sorted(rng.permutation(N_CLIPS)[:28].tolist())}
            | {"saliency_scores": ratings}
        )
        scores = np.sort(rng.random(N_WINDOWS).round(4))[::-1].tolist()
        near = (np.array(truth) + rng.normal(0.0, 3.0, (len(truth), 2))).round(4).tolist()
        guesses = (near + _windows(rng, N_WINDOWS))[:N_WINDOWS]
        windows = [[*window, score] for window, score in zip(guesses, scores, strict=True)]
        saliency = rng.normal(size=N_CLIPS).astype(np.float16).tolist()
        predictions.append(
            names | {"pred_relevant_windows": windows, "pred_saliency_scores": saliency}
        )
    write_jsonl(ground_truth, annotations)
    write_jsonl(submission, [predictions[index] for index in rng.permutation(queries)])


def _windows(rng: np.random.Generator, count: int) -> list[list[float]]:
    starts = rng.integers(0, N_CLIPS - 1, count)
    ends = np.minimum(starts + 1 + rng.geometric(0.1, count), N_CLIPS)
    return (np.stack([starts, ends], axis=1) * float(CLIP_LEN_S)).tolist()


if __name__ == "__main__":
    main()
