"""JSON lines of sets with labels for every clip and domains: TVSum and YouTube Highlights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mrmodel.data.annotations import parse_annotation
from mrmodel.data.datasets.base import ConvertedSplit
from mrmodel.errors import DataError
from mrmodel.lines import json_lines
from mrmodel.types import QueryId, differs_in_type

Ratings = Callable[[Mapping[str, Any]], tuple[float, list[list[float]]]]


def read_labelled(
    path: Path, clip_len_s: float, domains: tuple[str, ...], ratings: Ratings
) -> ConvertedSplit:
    """Read records in which every clip is rated.

    Args:
        path: JSON lines with `qid`, `query`, `vid`, `domain`.
        clip_len_s: seconds of one clip.
        domains: allowed domains.
        ratings: record -> seconds of the video, and one list of ratings per clip.

    Raises:
        DataError: the file cannot be read.
    """
    table, first = ConvertedSplit(), dict[str, tuple[int, QueryId]]()
    for line, _, record in json_lines(path):
        if isinstance(record, DataError):
            table.rejected.append(record)
            continue
        try:
            row = _row(record, domains, ratings)
            parse_annotation(row, clip_len_s)
            used, same = first.setdefault(str(row["qid"]), (line, row["qid"]))
            if used != line:
                rule = f"the qid is used already in line {used}"
                raise DataError(rule + differs_in_type(row["qid"], same))
        except DataError as error:
            table.rejected.append(error.at(path, line, record.get("qid")))
            continue
        table.rows.append(row)
    return table


def labels_of(record: Mapping[str, Any]) -> list[list[float]]:
    """The labels of a record: one list per clip."""
    labels = record.get("label")
    if not isinstance(labels, list) or not labels:
        raise DataError("'label' must be a list with one list of labels a clip")
    for place, clip in enumerate(labels):
        if not isinstance(clip, list) or not all(_is_number(label) for label in clip):
            raise DataError(f"label[{place}] = {clip!r}: expected a list of numbers")
    return labels


def _row(record: Mapping[str, Any], domains: tuple[str, ...], ratings: Ratings) -> dict[str, Any]:
    domain = record.get("domain")
    if domain not in domains:
        raise DataError(f"domain = {domain!r}: expected one of {', '.join(domains)}")
    duration, scores = ratings(record)
    return {
        "qid": record.get("qid"),
        "query": record.get("query"),
        "vid": record.get("vid"),
        "duration": duration,
        "relevant_clip_ids": list(range(len(scores))),
        "saliency_scores": scores,
        "domain": domain,
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
