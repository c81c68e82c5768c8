"""Disjoint splits for training, model selection and reported metrics.

Charades-STA, TVSum and YouTube Highlights were published with two splits, and the published systems
select checkpoints on the split that they report. Here a fraction of the training videos is held
out for selection instead.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrmodel.data.datasets.base import Split
from mrmodel.errors import DataError
from mrmodel.features.keys import base_video
from mrmodel.files import derive_seed

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Divided:
    """The pipeline's three splits, and a description of the source of each."""

    rows: dict[Split, Rows]
    origin: dict[Split, str]


def divide(name: str, published: Mapping[Split, Rows], held_out: float) -> Divided:
    """Use the published test split, or else the published val split, as ``test``.

    In the second case ``val`` is a fraction of the training videos, chosen by a hash of the name.

    Args:
        name: of the data set, part of the hash.
        published: records of each published split; ``train`` is required.
        held_out: fraction of the training videos, of each domain, in ``val`` (at least one video).

    Raises:
        DataError: a domain has a single training video, so none can be held out.
    """
    train = published["train"]
    if published.get("test") and published.get("val"):
        rows: dict[Split, Rows] = {name: published[name] for name in ("train", "val", "test")}
        return Divided(rows, {split: f"published {split}" for split in rows})
    reported: Split = "test" if published.get("test") else "val"
    held = _held_out_videos(name, train, held_out)
    parts: dict[Split, Rows] = {
        "train": [row for row in train if _base(row) not in held],
        "val": [row for row in train if _base(row) in held],
        "test": published[reported],
    }
    share = f"{len(held)} of {len({_base(row) for row in train})} videos"
    origin: dict[Split, str] = {
        "train": "published train, without those held out",
        "val": f"held out of published train: {share}",
        "test": f"published {reported}",
    }
    return Divided(parts, origin)


def _held_out_videos(name: str, train: Rows, share: float) -> set[str]:
    by_domain: dict[str, set[str]] = defaultdict(set)
    for row in train:
        by_domain[row.get("domain", "")].add(_base(row))
    held: set[str] = set()
    for domain, videos in sorted(by_domain.items()):
        if len(videos) < 2:
            where = f"domain {domain!r} of {name}" if domain else name
            raise DataError(f"{where} has a single training video; weights need one of their own")
        held.update(_first_by_hash(name, sorted(videos), share))
    return held


def _first_by_hash(name: str, videos: Sequence[str], share: float) -> list[str]:
    count = min(max(1, math.floor(share * len(videos) + 0.5)), len(videos) - 1)
    return sorted(videos, key=lambda video: derive_seed("held out", name, video))[:count]


def _base(row: Mapping[str, Any]) -> str:
    """The whole video of a record's segment; segments of one video stay in one split."""
    return base_video(row["vid"])
