"""JSON lines of sets with labels for every clip and domains: TVSum and YouTube Highlights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mrmodel.data.datasets.base import ConvertedSplit, json_lines
from mrmodel.errors import DataError
from mrmodel.types import QueryId, differs_in_type

Ratings = Callable[[Mapping[str, Any]], tuple[float, list[list[float]]]]


class Refused(Exception):
    """A rule that a record breaks; converted to a DataError with file and line."""


def read_labelled(path: Path, domains: tuple[str, ...], ratings: Ratings) -> ConvertedSplit:
    """Read records in which every clip is rated.

    Args:
        path: JSON lines with `qid`, `query`, `vid`, `domain`.
        domains: allowed domains.
        ratings: record -> seconds of the video, and one list of ratings per clip.

    Raises:
        DataError: the file cannot be read.
    """
    table, first = ConvertedSplit(), dict[str, tuple[int, QueryId]]()
    for line, record in json_lines(path):
        if isinstance(record, DataError):
            table.rejected.append(record)
            continue
        qid = record.get("qid")
        try:
            row = _row(record, domains, ratings)
            used, same = first.setdefault(str(row["qid"]), (line, row["qid"]))
            if used != line:
                rule = f"the qid is used already in line {used}"
                raise Refused(rule + differs_in_type(row["qid"], same))
        except Refused as error:
            table.rejected.append(DataError(str(error), file=path, line=line, qid=qid))
            continue
        table.rows.append(row)
    return table


def labels_of(record: Mapping[str, Any]) -> list[list[float]]:
    """The labels of a record: one list per clip."""
    labels = record.get("label")
    if not isinstance(labels, list) or not labels:
        raise Refused("'label' must be a list with one list of labels a clip")
    for place, clip in enumerate(labels):
        if not isinstance(clip, list) or not all(_is_number(label) for label in clip):
            raise Refused(f"label[{place}] = {clip!r}: expected a list of numbers")
    return labels


def _row(record: Mapping[str, Any], domains: tuple[str, ...], ratings: Ratings) -> dict[str, Any]:
    texts = ("query", "vid", "domain")
    for key in texts:
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise Refused(f"{key} = {record.get(key)!r}: expected a text")
    qid = record.get("qid")
    if isinstance(qid, bool) or not isinstance(qid, int | str) or qid == "":
        raise Refused(f"qid = {qid!r}: expected an integer or a non-empty string")
    if record["domain"] not in domains:
        raise Refused(f"domain = {record['domain']!r}: expected one of {', '.join(domains)}")
    duration, scores = ratings(record)
    return {
        "qid": qid,
        "query": record["query"],
        "vid": record["vid"],
        "duration": duration,
        "relevant_clip_ids": list(range(len(scores))),
        "saliency_scores": scores,
        "domain": record["domain"],
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
