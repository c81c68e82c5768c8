"""A month of deliveries for a small corpus of one's own, made of the rendered sample corpus."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mrmodel.config.schema import CorpusSettings, CorpusVideos
from mrmodel.files import write_jsonl
from mrmodel.progress import NullReporter
from mrmodel.synthetic.render import render_corpus

CLIP_LEN_S = 2.0
# Videos of the train split: what the repository starts with, and what arrives each week.
START, GOOD, ROUGH = range(6), range(6, 30), range(30, 60)

Row = dict[str, Any]


class Material:
    """Videos and right annotations, from which deliveries are put together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings = CorpusSettings(
            name="month",
            source="sample",
            folder="own_videos",
            seed=11,
            videos=CorpusVideos(pretrain=1, train=60, val=6, test=20),
            queries_per_video=6,
            captions_per_video=6,
            duration_s=24,
            fps=5,
            width=128,
            height=96,
            crf=26,
        )
        render_corpus(settings, CLIP_LEN_S, folder, 0, NullReporter())

    def rows(self, split: str, videos: Iterable[int] | None = None) -> list[Row]:
        """Rows about these videos of a split, counted from 0; None: about all."""
        lines = (self.folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        if videos is None:
            return rows
        names = sorted({row["vid"] for row in rows})
        wanted = {names[number] for number in videos}
        return [row for row in rows if row["vid"] in wanted]

    def deliver(
        self, folder: Path, tables: dict[str, list[Row]], change: Callable[[Row], Row] | None = None
    ) -> None:
        """Write tables and the videos that they are about, as somebody brings them."""
        (folder / "videos").mkdir(parents=True)
        for table, rows in tables.items():
            write_jsonl(folder / f"{table}.jsonl", [change(row) if change else row for row in rows])
            for vid in sorted({row["vid"] for row in rows}):
                shutil.copy(self.folder / "videos" / f"{vid}.mp4", folder / "videos")


def rough(row: Row) -> Row:
    """The whole video is marked, whatever is asked: what a hurried annotator does."""
    clips = list(range(int(row["duration"] // CLIP_LEN_S)))
    return row | {
        "relevant_windows": [[0.0, row["duration"]]],
        "relevant_clip_ids": clips,
        "saliency_scores": [[2, 2, 2] for _ in clips],
    }
