"""Speed of random batches from a feature store, beside one .npz file a video.

Run ``python -m benchmarks.feature_store [--videos N] [--batches N] [--json]``. Builds synthetic
768-d float16 features of 30 to 75 clips a video, then reads the same random batches of 128 videos,
padded to the longest, from both layouts in one thread; the median batch counts. Pages are warm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from mrmodel.features.index import IndexEntry
from mrmodel.features.manifest import StreamInfo
from mrmodel.features.store import FeatureStore
from mrmodel.features.writer import FeatureWriter

DIM, BATCH = 768, 128
Read = Callable[[list[str]], np.ndarray]


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=4000)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.videos, options.batches)
    if options.json:
        print(json.dumps(figures, allow_nan=False))
    else:
        print(", ".join(f"{name} {value}" for name, value in figures.items()))


def measure(folder: Path, videos: int, batches: int) -> dict[str, object]:
    """Samples a second of both layouts, by CPU and by wall clock."""
    keys = build(folder, videos)
    rng = np.random.default_rng(1)
    picked = [[keys[i] for i in rng.integers(0, videos, BATCH)] for _ in range(batches)]
    started = time.perf_counter()
    store = FeatureStore(folder / "store")
    open_s = time.perf_counter() - started
    places = store.resolve(keys)
    number = {key: place for place, key in enumerate(keys)}

    def from_store(batch: list[str]) -> np.ndarray:
        indices = np.array([number[key] for key in batch])
        return store.gather(places.take(indices))[0]

    def from_files(batch: list[str]) -> np.ndarray:
        return read_npz(folder / "npz", batch)

    for batch in picked[:3]:
        if not np.array_equal(from_store(batch), from_files(batch)):
            raise RuntimeError("the two layouts gave different rows")
    cpu, wall = speed(from_store, picked)
    reference_cpu, reference_wall = speed(from_files, picked)
    return {
        "benchmark": "feature_store",
        "videos": videos,
        "batch": BATCH,
        "dim": DIM,
        "samples_per_s": round(cpu),
        "wall_samples_per_s": round(wall),
        "npz_samples_per_s": round(reference_cpu),
        "npz_wall_samples_per_s": round(reference_wall),
        "ratio": round(cpu / reference_cpu, 2),
        "open_s": round(open_s, 3),
    }


def build(folder: Path, videos: int) -> list[str]:
    """Write the same rows in both layouts."""
    rng = np.random.default_rng(0)
    info = StreamInfo(
        stream="synthetic",
        dim=DIM,
        modality="video",
        keyed_by="vid",
        clip_len_s=2.0,
        fingerprint={},
    )
    keys = [f"v{number:06d}" for number in range(videos)]
    (folder / "npz").mkdir()
    with FeatureWriter(folder / "store", info) as writer:
        for key in keys:
            rows = rng.standard_normal((int(rng.integers(30, 76)), DIM), np.float32)
            half = rows.astype(np.float16)
            writer.add(IndexEntry(key, len(half)), half)
            np.savez(folder / "npz" / f"{key}.npz", features=half)
    return keys


def read_npz(folder: Path, batch: list[str]) -> np.ndarray:
    """The plain way: open each video's archive, pad, stack."""
    items = [np.load(folder / f"{key}.npz")["features"] for key in batch]
    block = np.zeros((len(items), max(map(len, items)), DIM), np.float16)
    for place, item in enumerate(items):
        block[place, : len(item)] = item
    return block


def speed(read: Read, batches: list[list[str]]) -> tuple[float, float]:
    """Samples a second by CPU time and by wall clock, of the median batch."""
    cpu, wall = [], []
    for batch in batches:
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        read(batch)
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return BATCH / statistics.median(cpu), BATCH / statistics.median(wall)


if __name__ == "__main__":
    main()
