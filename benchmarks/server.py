"""How many queries about a video the server answers, against the Predictor in process.

Run ``python -m benchmarks.server [--seconds N] [--workers N] [--json]``. SG-DETR of released size
with random weights, the encoders of every installation, one video of 150 s in the library, another
query each time. The server is ``mrmodel serve`` on loopback with its queue of 16.

* ``in_process``: as many threads as the server has workers, fed by as many callers as it has
  clients; queries a second.
* ``8`` and ``64``: that number of clients, each with one connection. A client sends its next query
  after the answer, or after the time that a 429 names. Answers a second, their 95th percentile, the
  number of 429s, and of other statuses than 200.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import report
from benchmarks.predictor import CLIP_LEN_S, CLIPS, sentences_of

CLIENTS = (8, 64)
# Seconds before the measurement.
WARM_UP_S = 3.0
_START_S = 120.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--settings", type=json.loads, default={"preset": "released"})
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mrmodel-") as name:
        folder = Path(name)
        make(folder, options.settings)
        alone = in_process(folder, options.workers, options.seconds)
        figures: dict[str, Any] = {
            "benchmark": "server",
            "cores": os.cpu_count(),
            "workers": options.workers,
            "in_process_qps": round(alone, 2),
        }
        with served(folder, options.workers) as port:
            for clients in CLIENTS:
                found = ask(port, clients, options.seconds)
                figures |= {f"{key}_{clients}": value for key, value in found.items()}
                figures[f"ratio_{clients}"] = round(found["qps"] / alone, 3)
    report(figures, options.json)


def make(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``model`` and ``library``, which holds one video."""
    import torch

    from mrmodel.config.postprocess import VALIDATION
    from mrmodel.features.extraction.job_runner import describe_stream
    from mrmodel.library.folder import Encoded, LibraryFolder, StoredFile
    from mrmodel.predict.predictor import Predictor
    from mrmodel.predict.serving import write_serving
    from mrmodel.train.checkpoint import save_model
    from mrmodel.video.frames import DecodeReport

    config = dataclasses.replace(
        Predictor.zero_shot().config,
        model="sg_detr",
        settings=settings,
        max_clips=CLIPS,
        max_tokens=32,
    )
    torch.manual_seed(0)
    save_model(folder / "model", config.build(), config)
    write_serving(folder / "model", VALIDATION)
    library = LibraryFolder(folder / "library", create=True)
    (stream,) = config.video_streams
    with library.writing():
        library.add_streams([describe_stream(stream.name, "video", CLIP_LEN_S)], active=True)
        rows = np.random.default_rng(0).standard_normal((CLIPS, stream.dim)).astype(np.float16)
        duration_s = CLIPS * CLIP_LEN_S
        decoded = DecodeReport("ok", "", duration_s, duration_s, 0, CLIPS, 0, 320, 240)
        file = StoredFile(folder / "video.mp4", None, "0" * 64, 0, 0)
        (id_,) = (one.id for one in library.streams())
        library.put_file(file, (), Encoded({id_: rows}, decoded, ()))
    library.close()


def in_process(folder: Path, workers: int, seconds: float) -> float:
    """Queries a second of the Predictor in threads of this process."""
    import torch

    from mrmodel.library.folder import LibraryFolder
    from mrmodel.library.search import LibrarySearch
    from mrmodel.predict.predictor import Predictor

    torch.set_num_threads(1)
    predictor = Predictor.load(folder / "model", "cpu")
    (video,) = LibrarySearch(LibraryFolder(folder / "library"), predictor).videos
    sentences = itertools.cycle(sentences_of(1000))
    lock = threading.Lock()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def call() -> int:
            with lock:
                sentence = next(sentences)
            pool.submit(predictor.search, video, [sentence]).result()
            return 200

        _repeat(call, CLIENTS[0], WARM_UP_S)
        seconds, times, _ = _repeat(call, CLIENTS[0], seconds)
    return len(times) / seconds


@contextmanager
def served(folder: Path, workers: int) -> Iterator[int]:
    """The port of a server that runs until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    program = "from mrmodel.cli.main import main; main()"
    command = [sys.executable, "-c", program, "serve", "--device", "cpu", "--port", str(port)]
    command += ["--library", str(folder / "library"), "--model", str(folder / "model")]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([*command, "--workers", str(workers)], stderr=log) as process,
    ):
        try:
            _wait_until_ready(port, process, folder / "log")
            yield port
        finally:
            process.terminate()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if _Client(port).get("/readyz")[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()}")


class _Client:
    """One connection to the server."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def ask(self, video: str, sentence: str) -> int:
        """Search; returns the status. After a 429 it waits for Retry-After."""
        body = json.dumps({"queries": [sentence], "top": 5}, allow_nan=False)
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", f"/v1/videos/{video}/search", body, headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status == 429:
            time.sleep(float(answer.headers["Retry-After"]))
        return answer.status


def ask(port: int, clients: int, seconds: float) -> dict[str, Any]:
    """Figures with `clients` clients."""
    (video,) = json.loads(_Client(port).get("/v1/videos")[1])["videos"]
    sentences = itertools.cycle(sentences_of(1000))
    lock, local = threading.Lock(), threading.local()

    def call() -> int:
        if not hasattr(local, "client"):
            local.client = _Client(port)
        with lock:
            sentence = next(sentences)
        status: int = local.client.ask(video["id"], sentence)
        return status

    _repeat(call, clients, WARM_UP_S)
    seconds, times, statuses = _repeat(call, clients, seconds)
    refused = statuses.pop(429, 0)
    answered = statuses.pop(200, 0)
    rate = answered / seconds
    return {
        "qps": round(rate, 2),
        "p95_ms": round(1e3 * float(np.quantile(times, 0.95)), 1),
        "p95_limit_ms": round(1e3 * 2 * clients / rate, 1),
        "refused": refused,
        "errors": sum(statuses.values()),
    }


def _repeat(
    call: Callable[[], int], callers: int, seconds: float
) -> tuple[float, list[float], Counter[int]]:
    """Call repeatedly from `callers` threads.

    Returns:
        Seconds that it took, seconds of each call that returned 200, and how often what returned.
    """
    times, statuses = list[float](), Counter[int]()
    began = time.perf_counter()

    def run() -> None:
        while (start := time.perf_counter()) < began + seconds:
            status = call()
            statuses[status] += 1
            if status == 200:
                times.append(time.perf_counter() - start)

    with ThreadPoolExecutor(callers) as pool:
        for future in [pool.submit(run) for _ in range(callers)]:
            future.result()
    return time.perf_counter() - began, times, statuses


if __name__ == "__main__":
    main()
