from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrmodel.config.schema import CorpusSettings, CorpusVideos
from mrmodel.progress import NullReporter
from mrmodel.synthetic.render import render_corpus

CLIP_LEN_S = 2.0


def settings_of(**changes: Any) -> CorpusSettings:
    values: dict[str, Any] = {
        "name": "small",
        "source": "sample",
        "folder": "own_videos",
        "seed": 11,
        "videos": CorpusVideos(pretrain=1, train=1, val=1, test=1),
        "queries_per_video": 3,
        "captions_per_video": 6,
        "duration_s": 20,
        "fps": 5,
        "width": 128,
        "height": 96,
        "crf": 26,
    }
    return CorpusSettings(**(values | changes))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of 20 s, rendered once."""
    out = tmp_path_factory.mktemp("corpus") / "small"
    render_corpus(settings_of(), CLIP_LEN_S, out, 1, NullReporter())
    return out


@pytest.fixture
def own_folder(tmp_path: Path, small_corpus: Path) -> Callable[[], Path]:
    """Makes a folder as a person would bring it, out of the rendered corpus."""

    def make() -> Path:
        folder = tmp_path / "own"
        (folder / "videos").mkdir(parents=True)
        for path in (small_corpus / "videos").iterdir():
            (folder / "videos" / path.name).write_bytes(path.read_bytes())
        for name in ("train", "val", "test", "captions"):
            (folder / f"{name}.jsonl").write_bytes((small_corpus / f"{name}.jsonl").read_bytes())
        return folder

    return make
