"""Answers about one video, as a program or a person asks for them.

Run ``python -m benchmarks.predictor --part long query [--queries N] [--hours N ...] [--json]``.
Weights are random, encoders and everything else real; one thread.

* ``query``: SG-DETR of released size and a video of 150 s that is encoded already. One query at a
  time, text encoder included: seconds by the clock, and CPU seconds beside those of the bare
  forward pass and text encoder, in turn. Then CPU seconds of 64 queries one by one against those
  of one batch.
* ``long``: ``mrmodel predict`` in a process of its own about videos of one hour and more, 240p,
  with the model and the encoders of params.yaml. Seconds by the clock and largest memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.decoding import write_video

QUERIES_IN_A_BATCH = 64
CLIPS, CLIP_LEN_S = 75, 2.0
# A minute is written, and repeated without encoding it again.
MINUTE_S, WIDTH, HEIGHT, FPS = 60, 320, 240, 30
SUBJECTS = ("a dog", "two cyclists", "the old man", "a white car", "a child with a kite")
ACTIONS = ("runs across the street", "waits", "turns around and waves at the camera", "falls")
PLACES = ("in the rain", "near the station", "at night", "", "while others look on from a window")


def main() -> None:
    """Measure and print one line a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", choices=["query", "long"], default=["long", "query"])
    parser.add_argument("--queries", type=int, default=200, help="one by one, of the part query")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--settings", type=json.loads, default={"preset": "released"})
    parser.add_argument("--hours", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--json", action="store_true", help="one JSON line a part")
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.save is not None:
        save_random(options.save)
        return
    if "query" in options.part:
        import torch  # The part `long` must not hold it.

        torch.set_num_threads(1)
    for part in options.part:
        figures = {"part": part, **(query(options) if part == "query" else long(options))}
        if options.json:
            print(json.dumps(figures, allow_nan=False), flush=True)
        else:
            print(", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)


def query(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of the part ``query``; see the module's text."""
    import torch

    from mrmodel.config.postprocess import VALIDATION
    from mrmodel.data.loader import BatchBuilder, RowLimits
    from mrmodel.features.store import MemoryStore
    from mrmodel.predict.predictor import ModelGrounding, Predictor, SearchableVideo
    from mrmodel.types import Annotation
    from mrmodel.video.frames import DecodeReport

    torch.manual_seed(0)
    config = dataclasses.replace(
        Predictor.zero_shot().config,
        model="sg_detr",
        settings=options.settings,
        max_clips=options.clips,
        max_tokens=32,
    )
    model = config.build().eval()
    predictor = Predictor(config, ModelGrounding(model, config, VALIDATION, torch.device("cpu")))
    (stream,) = config.video_streams
    rows = np.random.default_rng(0).standard_normal((options.clips, stream.dim)).astype(np.float16)
    duration_s = options.clips * CLIP_LEN_S
    video = SearchableVideo(
        "video",
        duration_s,
        0.0,
        options.clips,
        (MemoryStore(stream.name, {"video": rows}, CLIP_LEN_S),),
        DecodeReport("ok", "", duration_s, duration_s, 0, options.clips, 0, WIDTH, HEIGHT),
        config.video_streams,
    )
    sentences = sentences_of(options.queries)
    limits = RowLimits(config.max_clips, config.max_tokens)
    wall, whole, bare = [], [], []
    predictor.search(video, sentences[:8])
    for sentence in sentences:
        started, cpu = time.perf_counter(), time.process_time()
        predictor.search(video, [sentence])
        wall.append(time.perf_counter() - started)
        whole.append(time.process_time() - cpu)
        texts = predictor.encode_queries([sentence])
        builder = BatchBuilder(video.streams, texts, limits)
        batch = builder.batch([Annotation(0, sentence, "video", duration_s)])
        cpu = time.process_time()
        predictor.encode_queries([sentence])
        with torch.inference_mode():
            model(batch)
        bare.append(time.process_time() - cpu)
    asked = sentences_of(QUERIES_IN_A_BATCH)
    alone, together = [], []
    for _ in range(3):
        cpu = time.process_time()
        for sentence in asked:
            predictor.search(video, [sentence])
        alone.append(time.process_time() - cpu)
        cpu = time.process_time()
        predictor.search(video, asked)
        together.append(time.process_time() - cpu)
    return {
        "queries": len(sentences),
        "median_ms": round(1e3 * float(np.median(wall)), 1),
        "p95_ms": round(1e3 * float(np.quantile(wall, 0.95)), 1),
        "cpu_ms": round(1e3 * float(np.median(whole)), 1),
        "cpu_ratio": round(float(np.median(whole) / np.median(bare)), 3),
        "batch_ratio": round(float(np.median(alone) / np.median(together)), 2),
    }


def sentences_of(count: int) -> list[str]:
    """Different sentences of different lengths."""
    found = []
    for number in range(count):
        subject = SUBJECTS[number % len(SUBJECTS)]
        action = ACTIONS[number // len(SUBJECTS) % len(ACTIONS)]
        place = PLACES[number // (len(SUBJECTS) * len(ACTIONS)) % len(PLACES)]
        again = number // (len(SUBJECTS) * len(ACTIONS) * len(PLACES))
        words = [subject, action, place, f"for the {again + 1}th time" if again else ""]
        found.append(" ".join(filter(None, words)))
    return found


def long(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of the part ``long``; see the module's text."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model"
        # Not in this process: its memory would be that of the measured one at least.
        subprocess.run(
            [sys.executable, "-m", "benchmarks.predictor", "--save", str(model)],
            check=True,
        )
        minute = folder / "minute.mp4"
        write_video(minute, MINUTE_S, WIDTH, HEIGHT)
        for hours in options.hours:
            video = folder / "video.mp4"
            repeat_video(minute, video, max(1, round(hours * 3600 / MINUTE_S)))
            seconds, megabytes = predicted(video, model)
            figures |= {
                f"times_real_{hours:g}h": round(hours * 3600 / seconds, 1),
                f"peak_mb_{hours:g}h": round(megabytes, 1),
            }
    return figures


def save_random(folder: Path) -> None:
    """Write a model folder of the sizes and streams of params.yaml, with random weights."""
    import torch

    from mrmodel.config.schema import load_config
    from mrmodel.encoders.base import build_encoder
    from mrmodel.predict.predictor import stream_of
    from mrmodel.predict.serving import write_serving
    from mrmodel.train.checkpoint import ModelConfig, save_model

    params = load_config(Path("params.yaml"))
    features, name = params.features, params.train.models[0]
    clip_len_s = features.clip_len_s
    config = ModelConfig(
        model=name,
        settings=params.models[name],
        video_streams=tuple(
            stream_of(build_encoder(one), clip_len_s) for one in features.video_streams
        ),
        text_streams=tuple(stream_of(build_encoder(one), None) for one in features.text_streams),
        clip_len_s=clip_len_s,
        max_clips=features.max_clips,
        max_tokens=features.max_tokens,
        protocol=params.evaluate.protocol,
        training={},
    )
    torch.manual_seed(0)
    save_model(folder, config.build(), config)
    write_serving(folder, params.postprocess)


def repeat_video(minute: Path, target: Path, times: int) -> None:
    """Write a file that shows `minute` so many times, from the packets as they are."""
    with av.open(str(target), "w") as out:
        with av.open(str(minute)) as source:
            stream = out.add_stream_from_template(source.streams.video[0])
        for number in range(times):
            with av.open(str(minute)) as source:
                from_s = source.streams.video[0]
                shift = round(number * MINUTE_S / from_s.time_base)
                for packet in source.demux(from_s):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    out.mux(packet)


def predicted(video: Path, model: Path) -> tuple[float, float]:
    """Seconds by the clock, and largest resident memory in MB, of one ``mrmodel predict``."""
    program = "from mrmodel.cli.main import main; main()"
    command = [sys.executable, "-c", program, "predict", str(video), "--query", SUBJECTS[0]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    with subprocess.Popen(
        [*command, "--model", str(model), "--device", "cpu", "--json"],
        env=environment,
        stdout=subprocess.DEVNULL,
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
