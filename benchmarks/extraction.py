"""Extraction on a GPU, from video files to stored rows: clips a second, and who waits for whom.

Run ``python -m benchmarks.extraction [--encoders PART ...] [--videos N] [--workers N] [--json]``;
``--device cpu --small`` is a dry run with tiny networks and videos. Writes a 720p file and one of
320 x 240 (60 s, see `benchmarks.decoding`), and extracts copies of it through each encoder with
random weights (in bfloat16, SlowFast's in float32), as the stage does with `BatchingEncoder`.
`decode_wait_ratio` is the share of the encoder's time in which it waited for frames: near 1 the
processors are too few, near 0 the GPU is busy. Starting the workers (`start_s`) is left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.decoding import write_video
from benchmarks.gpu_bench import ENCODERS, Bench, EncoderCase, say
from mrmodel.features.extraction.gpu_batcher import BatchingEncoder
from mrmodel.features.extraction.jobs import Done, VideoJob
from mrmodel.features.extraction.partial_results import PartialResults
from mrmodel.video.decoder import VideoLimits

CLIP_LEN_S = 2.0
SIZES = {"720p": (1280, 720), "240p": (320, 240)}
SMALL_SIZES = {"small": (160, 96)}


def main() -> None:
    """Measure, print a line an encoder and video size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=[""], help="parts of their names")
    parser.add_argument("--videos", type=int, default=64, help="copies of each file")
    parser.add_argument("--seconds", type=int, default=60, help="of a video")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks, for a dry run")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(torch.device(options.device), options.small, 0.0, Path(folder), ())
        files = {}
        for name, (width, height) in (SMALL_SIZES if options.small else SIZES).items():
            files[name] = Path(folder) / f"{name}.mp4"
            write_video(files[name], options.seconds, width, height)
        for case in ENCODERS:
            if not any(part in case.encoder.name for part in options.encoders):
                continue
            for size, path in files.items():
                about = {"encoder": case.encoder.name, "size": size, "workers": options.workers}
                figures = extracted(bench, case, path, options.videos, options.workers)
                say({"part": "extraction", **about, **figures}, options.json)


def extracted(
    bench: Bench, case: EncoderCase, path: Path, videos: int, workers: int
) -> Mapping[str, Any]:
    """Extract `videos` copies of a file with that many decoding processes."""
    bench.begin()
    encoder = bench.encoder(case, "fp32" if bench.device.type == "cpu" else case.precision)
    if bench.device.type == "cpu":
        encoder = in_batches(encoder)
    encoder.encode_clips(bench.frames(encoder, encoder.batch_clips))  # kernels are chosen now
    pieces = PartialResults(bench.folder / "pieces")
    pieces.open({"benchmark": "extraction"})
    feed = BatchingEncoder(encoder, CLIP_LEN_S, VideoLimits(), pieces, workers, 600.0)
    jobs = [VideoJob.of(f"video{number:04d}", path) for number in range(videos)]
    began = time.perf_counter()
    ended, rows, start_s, wait_s, work_s = began, 0, 0.0, 0.0, 0.0
    for _, done in feed.run(jobs):
        if not isinstance(done, Done) or done.failure:
            raise RuntimeError(str(done))
        if not rows:  # Of the first videos the start is the larger part.
            began = time.perf_counter()
            start_s, first = began - ended, done.n_rows
        else:
            wait_s, work_s = wait_s + done.decode_s, work_s + done.encode_s
        rows += done.n_rows
    seconds = time.perf_counter() - began
    shutil.rmtree(pieces.folder)
    return {
        "clips": rows,
        "start_s": start_s,
        "clips_per_s": (rows - first) / seconds,
        "decode_wait_ratio": wait_s / (wait_s + work_s),
        **bench.memory(),
    }


def in_batches(encoder: Any) -> Any:
    """The encoder as if a CPU liked batches, so that a dry run goes the same way."""
    kind = type(encoder)
    encoder.__class__ = type(kind.__name__, (kind,), {"batch_clips": 4})
    return encoder


if __name__ == "__main__":
    main()
