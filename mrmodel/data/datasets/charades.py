"""Charades-STA (Gao et al., 2017): one moment per sentence, in half-minute household videos."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from mrmodel.data.datasets.base import (
    ConvertedSplit,
    PublishedDataset,
    PublishedFile,
    ReadOptions,
    read_moments,
    text_lines,
)
from mrmodel.errors import DataError

# Tables of Charades itself with the lengths of the videos, which the text files lack.
LENGTH_TABLES = ("Charades_v1_train.csv", "Charades_v1_test.csv")
_LINE = re.compile(r"(?P<vid>\S+)\s+(?P<start>[\d.]+)\s+(?P<end>[\d.]+)\s*##(?P<query>.*)")


class CharadesSta(PublishedDataset):
    """JSON lines, or the original text files (``VID START END##sentence``)."""

    name = "charades"
    title = "Charades-STA"
    clip_len_s = 1.0
    max_clips = None
    max_tokens = 32
    saliency = "1 on clips that lie in the moment by more than half, 0 elsewhere"
    files = (
        PublishedFile(
            "train",
            (
                "charades_train_release.jsonl",
                "charades_sta_train_tvr_format.jsonl",
                "charades_train.jsonl",
                "charades_sta_train.txt",
            ),
            (12404, 12408),
        ),
        PublishedFile(
            "test",
            (
                "charades_test_release.jsonl",
                "charades_sta_test_tvr_format.jsonl",
                "charades_test.jsonl",
                "charades_sta_test.txt",
            ),
            (3720,),
        ),
    )

    def read(self, path: Path, options: ReadOptions) -> ConvertedSplit:
        """Read either format, recognised by the file suffix."""
        if path.suffix == ".txt":
            return _read_text(path, options.first_qid)
        return read_moments(path, self.clip_len_s)


def _read_text(path: Path, first_qid: int) -> ConvertedSplit:
    """Records of a text file, with qids from `first_qid` on; moments are clipped to the video."""
    lengths, table = _lengths(path.parent), ConvertedSplit()
    for line, text in text_lines(path):
        try:
            row = _row(text, lengths)
        except ValueError as error:
            table.rejected.append(DataError(str(error), file=path, line=line))
            continue
        table.rows.append({"qid": first_qid + len(table.rows), **row})
    return table


def _row(text: str, lengths: dict[str, float]) -> dict[str, Any]:
    """Parse a line to a record without qid; raises ValueError with the rule that it breaks."""
    found = _LINE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text.strip()[:60]!r}: expected VID START END##sentence")
    vid, query = found["vid"], found["query"].strip()
    start, end = float(found["start"]), float(found["end"])
    if vid not in lengths:
        raise ValueError(f"vid = {vid!r}: no such id in {' or '.join(LENGTH_TABLES)}")
    if not query:
        raise ValueError("the sentence is empty")
    window = [start, min(end, lengths[vid])]
    if window[0] >= window[1]:
        rule = f"the moment {[start, end]} holds nothing of the video of {lengths[vid]} s"
        raise ValueError(rule)
    return {"query": query, "vid": vid, "duration": lengths[vid], "relevant_windows": [window]}


def _lengths(folder: Path) -> dict[str, float]:
    """Seconds of each video by id, from the tables next to the text files."""
    lengths: dict[str, float] = {}
    tables = [folder / name for name in LENGTH_TABLES if (folder / name).exists()]
    if not tables:
        names = " and ".join(LENGTH_TABLES)
        raise DataError(f"lacks {names}: the text files say no lengths of videos", file=folder)
    for path in tables:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                try:
                    lengths[row["id"]] = float(row["length"])
                except (KeyError, TypeError, ValueError):
                    rule = "expected columns 'id' and 'length', the latter in seconds"
                    raise DataError(rule, file=path, line=number) from None
    return lengths
