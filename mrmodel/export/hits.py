"""Hits: the windows of search results, with the files that they are in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrmodel.addresses import video_path
from mrmodel.errors import DataError, VideoError
from mrmodel.lines import json_lines
from mrmodel.types import Moment, QueryResult


@dataclass(frozen=True, slots=True)
class Hit:
    """A window that was found in a video file.

    Attributes:
        path: of the video, or of a pointer to a video in S3.
        query: what was searched for.
        moment: the window, in a player's seconds.
    """

    path: Path
    query: str
    moment: Moment

    def as_row(self) -> dict[str, object]:
        """The record that `read_hits` reads."""
        row: dict[str, object] = {
            "path": str(self.path),
            "query": self.query,
            "start_s": self.moment.start_s,
            "end_s": self.moment.end_s,
            "score": self.moment.score,
        }
        if self.moment.probability is not None:
            row["probability"] = self.moment.probability
        return row


def hits_of(video: str | Path, results: Iterable[QueryResult], top: int | None = None) -> list[Hit]:
    """The hits of search results about one video: the best `top` of each query, or all."""
    file = video_path(video)
    return [Hit(file, one.query, moment) for one in results for moment in one.moments[:top]]


def read_hits(path: Path, video: Path | None = None, top: int | None = None) -> list[Hit]:
    """Hits from a file with a JSON object in each line.

    Args:
        path: rows as ``mrmodel predict --json`` prints them, with the windows of a query; or rows
            of one window, with ``start_s`` and ``end_s``, as `Hit.as_row` makes them. Either may
            name its video as ``path``.
        video: the file that rows without ``path`` are about.
        top: of the windows of a row; None: all.

    Raises:
        DataError: the file cannot be read, or a row is neither; with its line.
    """
    hits: list[Hit] = []
    for line in json_lines(path):
        if isinstance(line.record, DataError):
            raise line.record
        try:
            hits += list(_hits_of_row(line.record, video))[:top]
        except ValueError as error:
            raise DataError(str(error), file=path, line=line.number) from None
    if not hits:
        raise DataError("no hits in it", file=path)
    return hits


def _hits_of_row(row: Mapping[str, Any], video: Path | None) -> Iterator[Hit]:
    file = _file_of(row, video)
    query = row.get("query", "")
    if not isinstance(query, str):
        raise ValueError(f"query = {_shown(query)}: expected a text")
    if "pred_relevant_windows" not in row:
        window = [row.get("start_s"), row.get("end_s"), row.get("score", 0.0)]
        yield Hit(file, query, _moment("start_s, end_s, score", window, row.get("probability")))
        return
    windows = row["pred_relevant_windows"]
    if not isinstance(windows, list):
        raise ValueError(f"pred_relevant_windows = {_shown(windows)}: expected a list of windows")
    for number, window in enumerate(windows):
        yield Hit(file, query, _moment(f"pred_relevant_windows[{number}]", window, None))


def _file_of(row: Mapping[str, Any], video: Path | None) -> Path:
    named = row.get("path")
    if isinstance(named, str) and named:
        try:
            return video_path(named)
        except VideoError as error:
            raise ValueError(f"path = {_shown(named)}: {error.detail}") from None
    if video is None:
        raise ValueError("names no file as path; name the video in the command")
    vid = row.get("vid", video.stem)
    if vid != video.stem:
        raise ValueError(f"vid = {_shown(vid)}: the row is not about the video {video}")
    return video


def _moment(name: str, window: object, probability: object) -> Moment:
    expected = "expected numbers: a start of 0 or more, an end after it, and a score"
    numbers = window if isinstance(window, list) and len(window) == 3 else [None]
    values = [*numbers, 0.0 if probability is None else probability]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} = {_shown(window)}: {expected}")
    if not all(map(math.isfinite, values)) or not 0 <= values[0] < values[1]:
        raise ValueError(f"{name} = {_shown(window)}: {expected}")
    start_s, end_s, score = map(float, numbers)
    return Moment(start_s, end_s, score, None if probability is None else float(values[3]))


def _shown(value: object) -> str:
    return json.dumps(value)[:60]
