"""Highlights: the clips of a video that fit generic queries best, without a query of the user."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from mrmodel.errors import DataError
from mrmodel.lines import text_lines
from mrmodel.predict.zero_shot import THRESHOLD_STD, similarity_windows
from mrmodel.types import Moment, QueryResult

_QUERIES = "highlight_queries.txt"


def read_highlight_queries(path: Path | None = None) -> list[str]:
    """Sentences from a text file with one in each line; lines with ``#`` in front are comments.

    Args:
        path: the file; None: the one of this package.

    Raises:
        DataError: the file cannot be read, is no UTF-8 text, or has no sentence.
    """
    if path is None:
        with resources.as_file(resources.files(__package__) / _QUERIES) as own:
            return read_highlight_queries(own)
    lines = [line.strip() for _, line in text_lines(path)]
    queries = [line for line in lines if not line.startswith("#")]
    if not queries:
        raise DataError("no queries in it; expected a sentence in each line", file=path)
    return queries


def highlights_of(results: Sequence[QueryResult], top: int) -> list[tuple[str, Moment]]:
    """The best windows of a video by the clip scores of several queries together.

    The scores of each query are standardised over the clips of the video, so that none counts for
    more than another, and averaged. Windows are the runs of clips above mean + `THRESHOLD_STD`
    standard deviations of that; their score is the mean.

    Args:
        results: of generic queries about one video; at least one.
        top: most windows.

    Returns:
        (query that fits the window best, window), best first.
    """
    scores = np.array([one.clip_scores for one in results], np.float64)
    spread = scores.std(axis=1, keepdims=True)
    scores = (scores - scores.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    clip_len_s, duration_s = results[0].clip_len_s, results[0].duration_s
    found = []
    windows = similarity_windows(scores.mean(axis=0), clip_len_s, THRESHOLD_STD)
    for start_s, end_s, score in windows[:top]:
        clips = slice(round(start_s / clip_len_s), round(end_s / clip_len_s))
        best = int(scores[:, clips].mean(axis=1).argmax())
        moment = Moment(start_s, min(end_s, duration_s), score)
        found.append((results[best].query, moment))
    return found
