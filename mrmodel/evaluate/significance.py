"""Is one system better than another? Bootstrap over videos of per-query figures.

Queries of one video are not independent, so whole videos are drawn with replacement and all their
queries come along; the resampled figure is the mean over those queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import DataError
from mrmodel.evaluate.columns import Floats
from mrmodel.evaluate.per_query import PerQuery
from mrmodel.files import derive_seed

# Draws handled at once, so that memory does not grow with the number of resamples.
_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True)
class BootstrapSettings:
    """How often to resample, with which seed, and how wide the interval is."""

    resamples: int = 10_000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0.0 < self.confidence < 1.0:
            raise ValueError(f"needs resamples >= 1 and confidence in (0, 1): {self}")


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure, its bootstrap interval, and what it rests on."""

    value: float
    low: float
    high: float
    queries: int
    videos: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Second system minus first: mean difference, interval, and share of resamples above 0."""

    difference: Interval
    share_above_zero: float


def confidence_interval(
    system: PerQuery, figure: str, settings: BootstrapSettings | None = None
) -> Interval:
    """Bootstrap interval of one figure of one system.

    Raises:
        DataError: the evaluation has no such figure, or no query enters it.
    """
    settings = settings or BootstrapSettings()
    values = _figure(system, figure)
    return _interval(values, system.vids, _resampled(values, system.vids, settings), settings)


def paired_bootstrap(
    first: PerQuery, second: PerQuery, figure: str, settings: BootstrapSettings | None = None
) -> Comparison:
    """How much better `second` is than `first`, on the same queries and the same resamples.

    Args:
        first: the system to beat.
        second: the candidate.
        figure: a key of `PerQuery.values`, e.g. ``MR-full-mAP``.
        settings: resamples, seed, confidence.

    Raises:
        DataError: the two were evaluated on different queries, or lack the figure.
    """
    settings = settings or BootstrapSettings()
    if dict(zip(first.qids, first.vids, strict=True)) != dict(
        zip(second.qids, second.vids, strict=True)
    ):
        raise DataError("the two systems were evaluated on different queries; nothing to compare")
    place = {qid: query for query, qid in enumerate(second.qids)}
    order = [place[qid] for qid in first.qids]
    values = _figure(second, figure)[order] - _figure(first, figure)
    means = _resampled(values, first.vids, settings)
    return Comparison(_interval(values, first.vids, means, settings), float(np.mean(means > 0.0)))


def _figure(system: PerQuery, figure: str) -> Floats:
    if figure not in system.values:
        known = ", ".join(sorted(system.values))
        raise DataError(f"the evaluation has no figure {figure!r} (it has {known})")
    values = system.values[figure]
    if np.isnan(values).all():
        raise DataError(f"no query enters the figure {figure!r}")
    return values


def _resampled(values: Floats, vids: list[str], settings: BootstrapSettings) -> Floats:
    """(resamples,) means over the queries that are not NaN.

    The draws depend on the seed and the set of videos only, so that figures can be compared.
    """
    counted = ~np.isnan(values)
    _, video_of = np.unique(np.array(vids), return_inverse=True)
    n_videos = int(video_of.max()) + 1
    sums = np.bincount(video_of, np.where(counted, values, 0.0), n_videos)
    sizes = np.bincount(video_of, counted, n_videos)
    generator = np.random.default_rng(derive_seed(settings.seed, "bootstrap"))
    means = []
    rows = max(1, _BLOCK // n_videos)
    for start in range(0, settings.resamples, rows):
        count = min(rows, settings.resamples - start)
        times = _draw(generator, count, n_videos)
        size = times @ sizes
        # A resample may miss every video of a rare length group: it has no mean and drops out.
        means.append((times @ sums)[size > 0.0] / size[size > 0.0])
    return np.concatenate(means)


def _draw(generator: np.random.Generator, count: int, n_videos: int) -> Floats:
    """(count, n_videos) how often each video is in each resample."""
    drawn = generator.integers(n_videos, size=(count, n_videos), dtype=np.int64)
    drawn += (np.arange(count) * n_videos)[:, None]
    times: NDArray[np.int64] = np.bincount(drawn.ravel(), minlength=count * n_videos)
    return times.reshape(count, n_videos).astype(np.float64)


def _interval(
    values: Floats, vids: list[str], means: Floats, settings: BootstrapSettings
) -> Interval:
    tail = 50.0 * (1.0 - settings.confidence)
    low, high = np.percentile(means, [tail, 100.0 - tail]).tolist()
    counted = ~np.isnan(values)
    videos = {vid for vid, enters in zip(vids, counted.tolist(), strict=True) if enters}
    return Interval(float(values[counted].mean()), low, high, int(counted.sum()), len(videos))
