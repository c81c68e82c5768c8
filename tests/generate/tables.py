"""Caption tables, settings and feature rows for the tests of InterVid-MR."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mrmodel.config import IntervidSettings
from mrmodel.features.keys import text_key
from mrmodel.features.store import MemoryStore
from mrmodel.generate.caption_rules import normalise_caption
from mrmodel.generate.intervid_mr import Features

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
DIM = 8


def settings(preset: str = "paper", **changes: Any) -> IntervidSettings:
    """Settings of params.yaml with a preset; `changes` are dotted names with ``__`` for dots."""
    tree = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))["intervid"]
    base = IntervidSettings.model_validate({**tree, "preset": "custom"})
    tree = base.with_preset(preset).model_dump()  # type: ignore[arg-type]
    for path, value in changes.items():
        *sections, name = path.split("__")
        node = tree
        for section in sections:
            node = node[section]
        node[name] = value
    found = IntervidSettings.model_validate(tree)
    return found.model_copy(update={"preset": "custom"}) if found.broken_promises() else found


def timestamp(seconds: float) -> str:
    millis = round(seconds * 1000)
    return (
        f"{millis // 3_600_000:02d}:{millis // 60_000 % 60:02d}:"
        f"{millis // 1000 % 60:02d}.{millis % 1000:03d}"
    )


def row(
    video: str = "abcdefghijk",
    start: float = 10.0,
    end: float = 20.0,
    caption: str = "a brown dog runs on the beach",
    **changes: Any,
) -> dict[str, Any]:
    return {
        "YoutubeID": video,
        "Start_timestamp": timestamp(start),
        "End_timestamp": timestamp(end),
        "Caption": caption,
        "UMT_Score": 0.5,
        "Aesthetic_Score": 4.5,
        **changes,
    }


def write_table(path: Path, rows: Iterable[Any]) -> Path:
    """A table; a `str` is written as it is."""
    lines = [item if isinstance(item, str) else json.dumps(item) for item in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def unit(angle: float) -> np.ndarray:
    """A vector whose cosine with `CAPTION_VECTOR` is cos(angle)."""
    vector = np.zeros(DIM, dtype=np.float32)
    vector[0], vector[1] = np.cos(angle), np.sin(angle)
    return vector


CAPTION_VECTOR = unit(0.0)


def features(videos: Mapping[str, np.ndarray], captions: Iterable[str]) -> Features:
    """`videos` maps an id to its (n, DIM) clip rows; every caption has the same vector."""
    texts = {text_key(normalise_caption(caption)): CAPTION_VECTOR[None] for caption in captions}
    return Features(MemoryStore("clips", videos, 2.0), MemoryStore("texts", texts), 2.0)


def clips_with(scores: Iterable[float]) -> np.ndarray:
    """(n, DIM) clip rows with these similarities to every caption."""
    return np.stack([unit(float(np.arccos(score))) for score in scores])


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
