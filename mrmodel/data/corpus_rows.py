"""The annotated queries of a corpus folder, which its feature stores must cover."""

from __future__ import annotations

from pathlib import Path

from mrmodel.config.base import MAX_CLIP_LEN_S, MIN_CLIP_LEN_S
from mrmodel.data.annotations import DEFAULT_CLIP_LEN_S, read_annotations, scan_annotations
from mrmodel.data.datasets.convert import RECORD, SPLITS
from mrmodel.data.ingest.summary import PRETRAINING
from mrmodel.errors import DataError
from mrmodel.files import read_object
from mrmodel.types import Annotation


def corpus_rows(folder: Path) -> list[Annotation]:
    """The records of ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``, as far as present.

    Then those of ``pretrain.jsonl`` and ``pretrain_val.jsonl``, without ratings; the stage `corpus`
    lists the invalid ones, which are left out.

    Raises:
        DataError: none of the first three exists, or a record of theirs is invalid.
    """
    files = [folder / f"{split}.jsonl" for split in SPLITS]
    present = [path for path in files if path.exists() and path.stat().st_size]
    if not present:
        names = ", ".join(path.name for path in files)
        hint = "mrmodel data convert writes them from published annotation files"
        raise DataError(f"has none of {names}; {hint}", file=folder)
    clip_len_s = corpus_clip_len(folder) or DEFAULT_CLIP_LEN_S
    rows = [row for path in present for row in read_annotations(path, clip_len_s)]
    for path in (folder / f"{name}.jsonl" for name in PRETRAINING):
        if path.exists():
            rows += scan_annotations(path, clip_len_s, with_ratings=False).rows
    return rows


def corpus_clip_len(folder: Path) -> float | None:
    """Seconds of a clip of a converted data set; None where the folder does not record it."""
    path = folder / RECORD
    if not path.exists():
        return None
    length = read_object(path).get("clip_len_s")
    if not isinstance(length, int | float) or not MIN_CLIP_LEN_S <= length <= MAX_CLIP_LEN_S:
        raise DataError(f"is no record of a conversion: clip_len_s = {length!r}", file=path)
    return float(length)
