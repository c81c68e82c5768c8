"""Caption tables, settings and feature rows for the tests of InterVid-MR."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mrmodel.config.intervid import INTERVID_PRESETS, IntervidSettings
from mrmodel.features.keys import text_key
from mrmodel.features.store import MemoryStore
from mrmodel.pretraining.intervid.caption_rules import RULES, normalise_caption
from mrmodel.pretraining.intervid.decontaminate import Excluded
from mrmodel.pretraining.intervid.filtering import FilterJob, filter_captions
from mrmodel.pretraining.intervid.samples import Features
from mrmodel.progress import NullReporter, Reporter

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
DIM = 8


# The values of the design that no preset changes; params.yaml may say otherwise for its corpus.
DESIGN: dict[str, Any] = {
    "preset": "custom",
    "seed": 2026,
    "val_share": 0.05,
    "source": {"name": None, "licence": None},
    "max_captions": None,
    "max_samples": None,
    "workers": 1,
    "chunk_rows": 250_000,
    "captions": {
        "rules": dict.fromkeys(RULES[1:], True),
        "benchmarks": [],
        "video_id_length": 11,
        "max_bad_row_share": 0.05,
        "min_words": 4,
        "max_words": 40,
        "min_characters": 15,
        "max_characters": 300,
        "min_ascii_share": 0.95,
        "max_digit_share": 0.3,
        "max_word_repeats": 3,
        "max_bigram_repeats": 2,
        "min_distinct_share": 0.55,
        "generic_videos": 50,
        "min_aesthetic_score": None,
        "max_per_video": 3,
    },
    "segment": {"length_s": 150.0, "offset": "random", "min_clips": 10},
    "labels": {"max_invalid_share": 0.2, "annotators": 3},
}


def settings(preset: str = "paper", **changes: Any) -> IntervidSettings:
    """Settings of the design with a preset; `changes` are dotted names with ``__`` for dots."""
    tree = copy.deepcopy(DESIGN) | {"preset": preset}
    for (section, name), value in INTERVID_PRESETS[preset].items():
        tree[section][name] = value
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


@dataclass
class Filtered:
    """What the filter wrote: its record, the kept rows and the others, by line."""

    record: dict[str, Any]
    kept: pd.DataFrame
    rejects: list[dict[str, Any]]

    @property
    def removed(self) -> dict[str, int]:
        found: dict[str, int] = self.record["rules"]
        return found


def filter_table(
    path: Path,
    leak: Iterable[str] = (),
    reporter: Reporter | None = None,
    **options: Any,
) -> Filtered:
    """The filter's result for a table, in the folder ``out`` beside it."""
    out = path.parent / "out"
    job = FilterJob(path, Excluded.of({"test": leak}), out, path.parent / "work")
    record = filter_captions(job, settings(**options), reporter or NullReporter())
    kept = pq.read_table(out / "kept.parquet").to_pandas()
    return Filtered(record, kept, pq.read_table(out / "rejects.parquet").to_pylist())


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
