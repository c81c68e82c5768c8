"""Charades-STA (Gao et al., 2017): one moment per sentence, in half-minute household videos."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrmodel.data.annotations import checked_duration, parse_annotation
from mrmodel.data.datasets.base import (
    ConvertedSplit,
    PublishedDataset,
    PublishedFile,
    ReadOptions,
    read_moments,
)
from mrmodel.errors import DataError
from mrmodel.files import read_text
from mrmodel.lines import text_lines

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
            return _read_text(path, options.first_qid, self.clip_len_s)
        return read_moments(path, self.clip_len_s)


def _read_text(path: Path, first_qid: int, clip_len_s: float) -> ConvertedSplit:
    """Records of a text file, with qids from `first_qid` on; moments are clipped to the video."""
    table = ConvertedSplit()
    lengths = _lengths(path.parent)
    for line, text in text_lines(path):
        try:
            row = {"qid": first_qid + len(table.rows), **_row(text, lengths)}
            parse_annotation(row, clip_len_s)
        except DataError as error:
            table.rejected.append(error.at(path, line, None))
            continue
        table.rows.append(row)
    return table


def _row(text: str, lengths: Mapping[str, float | DataError]) -> dict[str, Any]:
    """Parse a line to a record without qid; raises DataError with the rule that it breaks."""
    found = _LINE.fullmatch(text.strip())
    if found is None:
        raise DataError(f"{text.strip()[:60]!r}: expected VID START END##sentence")
    vid, query = found["vid"], found["query"].strip()
    try:
        start, end = float(found["start"]), float(found["end"])
    except ValueError:
        raise DataError(f"{text.strip()[:60]!r}: START and END must be seconds") from None
    if vid not in lengths:
        raise DataError(f"vid = {vid!r}: no such id in {' or '.join(LENGTH_TABLES)}")
    duration = lengths[vid]
    if isinstance(duration, DataError):
        raise DataError(f"vid = {vid!r}: {duration}")
    if not query:
        raise DataError("the sentence is empty")
    window = [start, min(end, duration)]
    if window[0] >= window[1]:
        rule = f"the moment {[start, end]} holds nothing of the video of {duration} s"
        raise DataError(rule)
    return {"query": query, "vid": vid, "duration": duration, "relevant_windows": [window]}


def _lengths(folder: Path) -> dict[str, float | DataError]:
    """Seconds of each video by id, or why there are none, from the tables next to the text files.

    Raises:
        DataError: a table is missing, or cannot be read as a whole.
    """
    lengths: dict[str, float | DataError] = {}
    tables = [folder / name for name in LENGTH_TABLES if (folder / name).exists()]
    if not tables:
        names = " and ".join(LENGTH_TABLES)
        raise DataError(f"lacks {names}: the text files say no lengths of videos", file=folder)
    for path in tables:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        try:
            if not {"id", "length"} <= set(reader.fieldnames or ()):
                raise DataError("expected columns 'id' and 'length', the latter in seconds")
            for row in reader:
                try:
                    lengths[row["id"]] = checked_duration(_number(row["length"]))
                except DataError as error:
                    lengths[row["id"]] = error.at(path, reader.line_num, None)
        except (DataError, csv.Error) as error:
            raise DataError(str(error), file=path, line=reader.line_num) from None
    return lengths


def _number(text: str | None) -> object:
    try:
        return float(text or "")
    except ValueError:
        return text
