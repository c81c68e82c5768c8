"""Stage ``profile``: a compact statistical profile of the training data.

New data are compared with this file (`mrmodel.retrain.drift`), so the drift check needs neither the
features nor the videos of the training data.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from mrmodel.config.schema import Config
from mrmodel.errors import DataError
from mrmodel.features.keys import normalise_query
from mrmodel.features.store import FeatureStore, Half
from mrmodel.files import write_json
from mrmodel.progress import Reporter, track
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_stage
from mrmodel.stages.scorer import read_rows_if_any
from mrmodel.types import Annotation

# An empirical distribution at this many ranks is accurate to 0.001.
_MOST_VALUES = 1001
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sample(_Frozen):
    """Empirical distribution of a quantity.

    Attributes:
        count: number of values.
        values: all values in ascending order, or those at equal steps of rank if there are many.
    """

    count: int
    values: list[float]

    @classmethod
    def of(cls, values: Iterable[float]) -> Sample:
        """Sort and subsample `values`."""
        ordered = np.sort(np.array(list(values), dtype=np.float64))
        kept = ordered
        if len(ordered) > _MOST_VALUES:
            ranks = np.linspace(0, len(ordered) - 1, _MOST_VALUES)
            kept = ordered[ranks.round().astype(np.int64)]
        return cls(count=len(ordered), values=[round(value, 3) for value in kept.tolist()])


class StreamProfile(_Frozen):
    """The features of one video stream, as one mean vector per video.

    Attributes:
        videos: number of videos.
        mean: mean of the videos' mean vectors, per channel.
        sd: their standard deviation, per channel; zeros for a single video.
        fingerprint: how the features were made.
    """

    videos: int
    mean: list[float]
    sd: list[float]
    fingerprint: dict[str, Any]


class Profile(_Frozen):
    """Statistics of the training split.

    Attributes:
        rows: annotated queries.
        duration_s: of each video.
        window_s: length of each window.
        windows_per_query, words_per_query: of each query.
        words: every word of the queries, sorted.
        unknown_words: fraction of words that occur in the queries of one video only: what another
            video of the same kind is expected to add.
        streams: features by the name of the stream.
    """

    rows: int
    duration_s: Sample
    window_s: Sample
    windows_per_query: Sample
    words_per_query: Sample
    words: list[str]
    unknown_words: float
    streams: dict[str, StreamProfile]

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read a profile; raises DataError if the file has other content."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(f"holds no profile of training data: {error}", file=path) from None


def profile(config: Config, reporter: Reporter) -> None:
    """Write ``reports/profile.json``."""
    paths = Paths(config)
    rows = read_rows_if_any(paths.split("train"), config.features.clip_len_s)
    streams = {
        name: _of_store(FeatureStore(paths.stream(name)), rows, reporter)
        for name in config.features.video_streams
    }
    write_json(paths.profile, profile_of(rows, streams).model_dump())


def profile_of(rows: Sequence[Annotation], streams: dict[str, StreamProfile]) -> Profile:
    """The profile of annotations and the features of their videos."""
    by_video: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_video[row.vid] += words_of(row.query)
    words, own = _count_words(by_video)
    durations = {row.vid: row.duration for row in rows}
    return Profile(
        rows=len(rows),
        duration_s=Sample.of(durations.values()),
        window_s=Sample.of(end - start for row in rows for start, end in row.relevant_windows),
        windows_per_query=Sample.of(len(row.relevant_windows) for row in rows),
        words_per_query=Sample.of(len(words_of(row.query)) for row in rows),
        words=words,
        unknown_words=round(own, 6),
        streams=streams,
    )


def words_of(query: str) -> list[str]:
    """The words of a sentence, case folded, without punctuation."""
    return _WORD.findall(normalise_query(query).casefold())


def stream_profile(means: Sequence[NDArray[Any]], fingerprint: dict[str, Any]) -> StreamProfile:
    """The profile of a stream from the mean vectors (dim,) of its videos."""
    table = np.stack(means).astype(np.float64)
    spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])
    return StreamProfile(
        videos=len(table),
        mean=[float(f"{value:.6g}") for value in table.mean(axis=0)],
        sd=[float(f"{value:.6g}") for value in spread],
        fingerprint=fingerprint,
    )


def mean_vector(rows: Half) -> NDArray[np.float64]:
    """Mean over the clips (n, dim) of a video: (dim,)."""
    mean: NDArray[np.float64] = rows.astype(np.float64).mean(axis=0)
    return mean


def _of_store(store: FeatureStore, rows: Sequence[Annotation], reporter: Reporter) -> StreamProfile:
    vids = sorted({row.vid for row in rows if row.vid in store})
    if not vids:
        raise DataError("has features of no training video", file=store.folder)
    shown = track(vids, reporter, f"profile {store.info.stream}", len(vids))
    means = [mean_vector(store.gather([vid])[0][0]) for vid in shown]
    return stream_profile(means, store.info.fingerprint)


def _count_words(by_video: dict[str, list[str]]) -> tuple[list[str], float]:
    """All words, and the fraction of word occurrences whose word is in one video only."""
    videos: dict[str, set[str]] = defaultdict(set)
    for vid, words in by_video.items():
        for word in words:
            videos[word].add(vid)
    used = [word for words in by_video.values() for word in words]
    alone = sum(len(videos[word]) == 1 for word in used)
    return sorted(videos), alone / len(used) if used else 0.0


if __name__ == "__main__":
    run_stage(profile)
