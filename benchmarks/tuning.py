"""Speed of a tuning trial: stored detections to metrics, at the size of QVHighlights val.

Run ``python -m benchmarks.tuning [--queries N] [--repeats N] [--nms IOU] [--json]``. Detections are
random but near the truth; times are medians over the repeats, in seconds of CPU time of one thread.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common import CLIP_LEN_S, Clock, peak_rss_mb, report
from benchmarks.evaluator import N_CLIPS, write_submission
from mrmodel.config.postprocess import VALIDATION
from mrmodel.evaluate.qvhighlights import QVHighlights
from mrmodel.evaluate.rows import RowFile, read_rows
from mrmodel.models.sg_detr.output import RawDetections
from mrmodel.predict.post_hoc import CachedDetections, predict_cached
from mrmodel.predict.postprocess import Postprocess

N_QUERIES, N_ANCHORS = 25, 147


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=1550)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--nms", type=float, default=0.7)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ground_truth = Path(folder) / "gt.jsonl"
        write_submission(ground_truth, Path(folder) / "preds.jsonl", options.queries)
        truth = read_rows(ground_truth)
    report(measure(truth, options), options.json)


def measure(truth: RowFile, options: argparse.Namespace) -> dict[str, Any]:
    """Median CPU seconds of a trial, whole and by part."""
    cached, protocol, clock = make_detections(truth), QVHighlights(), Clock()
    metrics: dict[str, float] = {}
    for repeat in range(options.repeats):
        # Another choice each time, as a search would ask.
        fusion = {"iou_thr": 0.55 + 0.04 * (repeat % 10), "weights": [1.0, 0.8]}
        choice = VALIDATION.model_copy(
            update={
                "alpha": 0.3 + 0.05 * (repeat % 8),
                "fusion": VALIDATION.fusion.model_copy(update=fusion),
                "nms_iou": options.nms,
            }
        )
        with clock.part("windows"):
            found = predict_cached(cached, Postprocess.of(choice, CLIP_LEN_S))
            rows = [row.as_row() for row in found]
        with clock.part("score"):
            metrics = score(protocol, truth, rows)
    return {
        "benchmark": "tuning",
        "queries": options.queries,
        "nms": options.nms,
        "trial_cpu_s": clock.median("windows") + clock.median("score"),
        "windows_cpu_s": clock.median("windows"),
        "score_cpu_s": clock.median("score"),
        "mr_map": metrics[protocol.headline],
        "peak_rss_mb": peak_rss_mb(),
    }


def score(protocol: QVHighlights, truth: RowFile, rows: Any) -> dict[str, float]:
    """The few figures, as the pipeline's judge gives them."""
    metrics = protocol.main_metrics(protocol.score(truth, rows, "clean").metrics)
    return {name: value for name, value in metrics.items() if value is not None}


def make_detections(truth: RowFile) -> CachedDetections:
    """What a model could have said: windows around true ones, among random ones."""
    draw = torch.Generator().manual_seed(0)
    n = len(truth)

    def spans(count: int) -> torch.Tensor:
        first = [row["relevant_windows"][0] for row in truth]
        true_xx = torch.tensor(first)[:, None] / (N_CLIPS * CLIP_LEN_S)
        near = true_xx + 0.05 * torch.randn((n, count, 2), generator=draw)
        anywhere = torch.rand((n, count, 2), generator=draw).sort(dim=-1).values
        ends = near.where(torch.rand((n, count, 1), generator=draw) < 0.3, anywhere)
        return torch.stack((ends.mean(-1), (ends[..., 1] - ends[..., 0]).abs()), dim=-1).clamp(0, 1)

    def logits(count: int) -> torch.Tensor:
        return 2.0 * torch.randn((n, count), generator=draw)

    raw = RawDetections(
        logits(N_QUERIES), spans(N_QUERIES), logits(N_QUERIES),
        logits(N_ANCHORS), logits(N_ANCHORS), spans(N_ANCHORS),
    )  # fmt: skip
    return CachedDetections(
        raw=raw,
        final=None,
        saliency=logits(N_CLIPS),
        clip_mask=torch.ones(n, N_CLIPS, dtype=torch.bool),
        duration_s=torch.tensor([row["duration"] for row in truth], dtype=torch.float64),
        start_s=torch.zeros(n, dtype=torch.float64),
        clip_len_s=CLIP_LEN_S,
        qids=[row["qid"] for row in truth],
        queries=[row["query"] for row in truth],
        vids=[row["vid"] for row in truth],
    )


if __name__ == "__main__":
    main()
