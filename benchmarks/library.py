"""Searching a library: seconds of retrieval, and how often the right video and moment are found.

    python -m benchmarks.library scan              100,000 and 1,800,000 clips of 512 numbers
    python -m benchmarks.library quality FOLDER    a repository after `dvc repro`

`quality` adds the videos of the split to a library, asks each query of its annotations, and counts
how often the right video is among the first 1, 5 and 10, and the right moment (its best window has
an IoU of at least 0.5 with an annotated one) among the first 10. `--rankings` compares the ways of
ranking instead, for exhaustive search: so the default was chosen, on the split ``val``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrmodel.components import ENCODERS
from mrmodel.data.annotations import read_annotations
from mrmodel.features.keys import text_key
from mrmodel.features.manifest import StreamInfo
from mrmodel.features.store import MemoryStore
from mrmodel.files import digest_of
from mrmodel.library import DEPTH, ranking
from mrmodel.library.folder import Encoded, LibraryFolder, StoredFile
from mrmodel.library.library import Library
from mrmodel.library.ranking import RANKINGS, ranks
from mrmodel.library.search import LibrarySearch
from mrmodel.progress import RichReporter
from mrmodel.train.checkpoint import ModelConfig, ModelStream
from mrmodel.types import Annotation, QueryResult
from mrmodel.video.frames import DecodeReport

DIM = 512
CLIPS_PER_VIDEO = 300
DEPTHS = (10, 20, 30, 50, None)
FIRST = (1, 5, 10)


class SyntheticVideo:
    """Stands for an encoder of clips."""

    modality, dim = "video", DIM


class SyntheticText:
    """Stands for the encoder of sentences to it."""

    modality, dim, layout = "text", DIM, "sentence, tokens"


class Sentences:
    """What retrieval needs of a predictor: one random sentence vector per query."""

    languages: tuple[str, ...] = ()

    def __init__(self, info: StreamInfo) -> None:
        video = ModelStream("synthetic.video", DIM, digest_of(info.fingerprint))
        text = ModelStream("synthetic.text", DIM, None)
        self.config = ModelConfig(
            "none", {}, (video,), (text,), 2.0, None, 32, "qvhighlights", training={}
        )

    def encode_queries(self, queries: Sequence[str]) -> list[MemoryStore]:
        """As `Predictor.encode_queries`; the length of a query decides."""
        rng = np.random.default_rng(len(queries[0]))
        rows = {text_key(one): rng.standard_normal((1, DIM)) for one in queries}
        return [MemoryStore("synthetic.text", rows)]


def make_library(folder: Path, n_clips: int) -> StreamInfo:
    """A library of videos of ten minutes with random rows."""
    info = StreamInfo(
        stream="synthetic.video",
        dim=DIM,
        modality="video",
        keyed_by="vid",
        clip_len_s=2.0,
        fingerprint={"encoder": "synthetic"},
    )
    library = LibraryFolder(folder, create=True)
    report = DecodeReport("ok", "", 600.0, 600.0, 0, CLIPS_PER_VIDEO, 0, 320, 240)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((CLIPS_PER_VIDEO * 64, DIM), dtype=np.float32).astype(np.float16)
    with library.writing():
        library.add_streams([info], active=True)
        (stream,) = library.streams()
        for number in range(n_clips // CLIPS_PER_VIDEO):
            first = number % 63 * CLIPS_PER_VIDEO + number % 291
            encoded = Encoded({stream.id: rows[first : first + CLIPS_PER_VIDEO]}, report, ())
            path = Path(f"/videos/{number:06d}.mp4")
            library.put_file(StoredFile(path, None, f"{number:064d}", 1, 1), (), encoded)
    library.close()
    return info


def own_megabytes() -> float:
    """Memory of this process beside mapped files, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return int(values["RssAnon"].split()[0]) / 1000


def scan() -> None:
    """Print seconds and memory of retrieval."""
    ENCODERS.register("synthetic.video", "benchmarks.library:SyntheticVideo")
    ENCODERS.register("synthetic.text", "benchmarks.library:SyntheticText")
    print(f"{torch.get_num_threads()} threads")
    for n_clips in (99_900, 1_800_000):
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            info = make_library(Path(folder), n_clips)
            torch.mv(torch.zeros(64, DIM).half(), torch.zeros(DIM).half())
            before = own_megabytes()
            started = time.perf_counter()
            search = LibrarySearch(LibraryFolder(Path(folder)), Sentences(info))  # type: ignore
            opened = time.perf_counter()
            search.retrieve("the first", DEPTH)
            first = time.perf_counter()
            times = []
            for number in range(20):
                begun = time.perf_counter()
                search.retrieve("x" * (number + 20), DEPTH)
                times.append(time.perf_counter() - begun)
            print(
                f"{n_clips} clips: opened in {opened - started:.2f} s, first search "
                f"{first - opened:.3f} s, then {np.median(times):.4f} s (at most "
                f"{max(times):.4f}); {own_megabytes() - before:.0f} MB beside the mapped rows"
            )


class Corpus:
    """A split of a reproduced corpus, and a library of its videos in a temporary folder."""

    def __init__(self, root: Path, split: str, model: str, library: Path) -> None:
        config = json.loads((root / "models/served" / model / "config.json").read_text())
        corpus = root / "data" / config["training"]["corpus"]
        self.rows = read_annotations(corpus / f"{split}.jsonl")
        videos = sorted({row.vid for row in self.rows})
        self.library, self.model = library, root / "models/served" / model
        begun = time.perf_counter()
        report = Library(library, self.model).add(
            [corpus / "videos" / f"{vid}.mp4" for vid in videos], reporter=RichReporter()
        )
        assert not report.problems, report.problems
        spent = time.perf_counter() - begun
        print(f"{split}: {len(videos)} videos, {len(self.rows)} queries, added in {spent:.0f} s")


def is_right(result: QueryResult, row: Annotation) -> bool:
    """Whether the best window has an IoU of 0.5 with an annotated one."""
    for moment in result.moments[:1]:
        for start, end in row.relevant_windows:
            shared = min(end, moment.end_s) - max(start, moment.start_s)
            if shared >= 0.5 * (max(end, moment.end_s) - min(start, moment.start_s)):
                return True
    return False


def shares(found: list[tuple[float, bool]]) -> dict[str, float]:
    """Per cent of queries with the right video, and moment, among the first."""
    places = np.array([place for place, _ in found])
    right = np.array([is_right for _, is_right in found])
    figures = {f"video in first {n}": float(100 * (places <= n).mean()) for n in FIRST}
    return figures | {"moment in first 10": float(100 * (right & (places <= 10)).mean())}


def quality(corpus: Corpus) -> None:
    """Print the figures of similarity alone, and of the model at several depths."""
    systems: list[tuple[str, Any, int | None]] = [("similarity alone", "zero-shot", None)]
    names = {None: "exhaustive"}
    systems += [(names.get(d) or f"depth {d}", corpus.model, d) for d in DEPTHS]
    for name, model, depth in systems:
        library = Library(corpus.library, model)
        found, begun = [], time.perf_counter()
        for row in corpus.rows:
            (answer,) = library.search(
                [row.query], 10, depth=depth or DEPTH, exhaustive=depth is None
            )
            hits = [hit for hit in answer.hits if hit.path.stem == row.vid]
            found += [(hit.rank, is_right(hit.result, row)) for hit in hits] or [(np.inf, False)]
        seconds = (time.perf_counter() - begun) / len(corpus.rows)
        figures = "  ".join(f"{key} {value:.1f}" for key, value in shares(found).items())
        print(f"{name:>16}: {figures}  ({1000 * seconds:.0f} ms a query)")


def rankings(corpus: Corpus) -> None:
    """Print the figures of each way of ranking, over all videos."""
    library = Library(corpus.library, corpus.model)
    found: dict[str, list[tuple[float, bool]]] = {name: [] for name in RANKINGS}
    library.search([corpus.rows[0].query], 1)
    search = library.current()
    for row in corpus.rows:
        candidates = search.retrieve(row.query, None)
        results = search.ground(row.query, candidates)
        own = [search.path(video).stem for video in candidates.videos].index(row.vid)
        right = is_right(results[own], row)
        for name, rank in RANKINGS.items():
            place = ranks(rank(results, candidates.similarities))[own]
            found[name].append((place, right))
    for name, places in found.items():
        chosen = " (the default)" if name == ranking.RANKING else ""
        figures = "  ".join(f"{key} {value:.1f}" for key, value in shares(places).items())
        print(f"{name:>16}: {figures}{chosen}")


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("scan")
    command = commands.add_parser("quality")
    command.add_argument("folder", type=Path)
    command.add_argument("--split", default="test")
    command.add_argument("--model", default="sg_detr")
    command.add_argument("--rankings", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "scan":
        scan()
        return
    root = arguments.folder.resolve()
    with tempfile.TemporaryDirectory() as folder, chdir(root):
        corpus = Corpus(root, arguments.split, arguments.model, Path(folder) / "library")
        (rankings if arguments.rankings else quality)(corpus)


if __name__ == "__main__":
    main()
