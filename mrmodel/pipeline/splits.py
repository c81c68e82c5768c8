"""Annotated rows of the corpus, by split."""

from __future__ import annotations

import json
from pathlib import Path

from mrmodel.data.annotations import read_annotations
from mrmodel.pipeline.layout import Layout
from mrmodel.types import Annotation


def read_rows_if_any(path: Path, clip_len_s: float) -> list[Annotation]:
    """The rows of an annotation file; none where a stage wrote it empty on purpose."""
    if path.stat().st_size == 0:
        return []
    return read_annotations(path, clip_len_s)


def reported_split(layout: Layout) -> str:
    """The split that figures are reported on: ``test``, or ``val`` where a folder has no test."""
    summary = json.loads((layout.corpus / "corpus.json").read_text(encoding="utf-8"))
    split: str = summary["reported_split"]
    return split
