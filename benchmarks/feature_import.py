"""Speed and memory of `mrmodel features import` of an archive in the layout of QVHighlights.

Run ``python -m benchmarks.feature_import [--videos N] [--json]``. Writes N videos (SlowFast 2304
and CLIP 512, 75 float16 rows each) and N queries (about 15 token rows) as .npz files, imports them
in one process, and times that alone; files lie in the page cache. The memory figure is what the
import adds to the process at its peak, for N videos and for a quarter of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from mrmodel.features.importers.importer import FeatureImportRequest, import_archive
from mrmodel.types import Annotation


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(imported(options.folder, options.videos), allow_nan=False))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_archive(Path(folder) / "archive", options.videos)
        few = in_a_process(Path(folder), options.videos // 4)
        all_of_them = in_a_process(Path(folder), options.videos)
    figures = {
        "benchmark": "feature_import",
        "videos": options.videos,
        **all_of_them,
        "peak_mb_quarter": few["peak_mb"],
    }
    if options.json:
        print(json.dumps(figures, allow_nan=False))
    else:
        print(", ".join(f"{name} {value}" for name, value in figures.items()))


def write_archive(folder: Path, videos: int) -> None:
    """The files of Moment-DETR's archive, under made-up ids; contents come from few blocks."""
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((8, 75, 2304)).astype(np.float16)
    for name in ("slowfast_features", "clip_features", "clip_text_features"):
        (folder / name).mkdir(parents=True)
    for number in range(videos):
        block = blocks[number % len(blocks)]
        vid = f"v{number:07d}_60.0_210.0"
        np.savez(folder / "slowfast_features" / f"{vid}.npz", features=block)
        np.savez(folder / "clip_features" / f"{vid}.npz", features=block[:, :512])
        states = block[: 10 + number % 10, :512]
        np.savez(
            folder / "clip_text_features" / f"qid{number}.npz",
            last_hidden_state=states,
            pooler_output=states[0],
        )


def in_a_process(folder: Path, videos: int) -> dict[str, float]:
    """The figures of an import in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.feature_import"]
    command += ["--folder", str(folder), "--videos", str(videos)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def imported(folder: Path, videos: int) -> dict[str, float]:
    """Import and measure."""
    rows = [
        Annotation(number, f"a sentence of number {number}", f"v{number:07d}_60.0_210.0", 150.0)
        for number in range(videos)
    ]
    request = FeatureImportRequest("moment_detr", folder / "archive", folder / f"stores{videos}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    reports = import_archive(request, rows)
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
    files = sum(report.n_items for report in reports)
    size = sum(path.stat().st_size for path in request.output.rglob("shard-*.npy"))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "files": files,
        "stored_mb": round(size / 1e6),
        "files_per_s": round(files / cpu_s),
        "wall_files_per_s": round(files / wall_s),
        "peak_mb": round((after - before) / 1024, 1),
    }


if __name__ == "__main__":
    main()
