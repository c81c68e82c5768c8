"""Sampling frames from a 720p H.264 file, beside PyAV's plain loop over all of its frames.

Run ``python -m benchmarks.decoding [--seconds N] [--repeats N] [--json]``. Writes a video of noise
that moves (30 fps, libx264 veryfast, a key frame every 250 frames) and takes two frames a second of
it, in clips of 2 s, both ways alternately in one process; the median of the ratios counts. Both
decode every frame and make RGB arrays of the chosen ones, at the picture's size, and once more at
224 x 224 as encoders ask for. The memory is that of a fresh process that samples at 224 x 224.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling

WIDTH, HEIGHT, FPS, CLIP_LEN_S = 1280, 720, 30, 2.0
FRAMES_PER_CLIP = 4
SIDE = 224


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.seconds % CLIP_LEN_S:
        parser.error(f"--seconds must be a multiple of {CLIP_LEN_S:g}, the length of a clip")
    if options.file is not None:
        sampled(options.file, (SIDE, SIDE))
        print(highest_memory_mb())
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, options.seconds)
        figures = {
            "benchmark": "decoding",
            "seconds": options.seconds,
            "megabytes": round(path.stat().st_size / 1e6, 1),
            **beside(path, None, options.repeats),
            **beside(path, (SIDE, SIDE), options.repeats),
            "peak_mb": round(peak_mb(path), 1),
        }
    if options.json:
        print(json.dumps(figures, allow_nan=False))
    else:
        print(", ".join(f"{name} {value}" for name, value in figures.items()))


def write_video(path: Path, seconds: int, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write `seconds` of moving noise."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height // 4, width // 2, 3), dtype=np.uint8)
    wall = noise.repeat(4, axis=0).repeat(4, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 250
        stream.options = {"preset": "veryfast"}
        for number in range(seconds * FPS):
            left = 3 * number % width
            picture = np.ascontiguousarray(wall[:, left : left + width])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def sampled(path: Path, size: tuple[int, int] | None) -> int:
    """Frames taken by ours."""
    sampling = FrameSampling(FRAMES_PER_CLIP, size, "middle", "bicubic")
    return sum(len(clip.frames) for clip in FrameSource(path).clips(CLIP_LEN_S, sampling))


def plain(path: Path, size: tuple[int, int] | None) -> int:
    """Frames taken by the loop that anybody would write: every fifteenth."""
    width, height = size or (WIDTH, HEIGHT)
    taken = []
    with av.open(str(path)) as container:
        step = round(FPS * CLIP_LEN_S / FRAMES_PER_CLIP)
        for number, frame in enumerate(container.decode(video=0)):
            if number % step == step // 2:
                taken.append(frame.to_ndarray(format="rgb24", width=width, height=height))
                if len(taken) == FRAMES_PER_CLIP:
                    np.stack(taken)
                    taken.clear()
    return (number + 1) // step


def beside(path: Path, size: tuple[int, int] | None, repeats: int) -> dict[str, float]:
    """Seconds of both at one size, and how many times as fast as the plain loop ours is."""
    ours, theirs = [], []
    assert sampled(path, size) == plain(path, size)
    for _ in range(repeats):
        theirs.append(timed(plain, path, size))
        ours.append(timed(sampled, path, size))
    name = "native" if size is None else f"{size[0]}px"
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {
        f"ours_s_{name}": round(statistics.median(ours), 3),
        f"plain_s_{name}": round(statistics.median(theirs), 3),
        f"ratio_{name}": round(statistics.median(ratios), 3),
    }


def timed(take: Callable[[Path, tuple[int, int] | None], int], path: Path, size: object) -> float:
    """Wall-clock seconds of one reading."""
    started = time.perf_counter()
    take(path, size)  # type: ignore[arg-type]
    return time.perf_counter() - started


def highest_memory_mb() -> float:
    """Largest resident memory of this process; `getrusage` would count its parent's as well."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def peak_mb(path: Path) -> float:
    """Largest resident memory of a process that samples the file."""
    command = [sys.executable, "-m", "benchmarks.decoding", "--file", str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
