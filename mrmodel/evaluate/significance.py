"""Significance tests: bootstrap of per-query metrics over videos.

Queries of one video are not independent, so whole videos are drawn with replacement, with all
their queries; the resampled metric is the mean over those queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import DataError
from mrmodel.evaluate.ragged import Floats
from mrmodel.files import derive_seed


@dataclass(frozen=True, slots=True)
class PerQuery:
    """Metrics of each query, in the order of the annotation file.

    Attributes:
        qids: n query ids.
        vids: n video ids.
        values: metric name -> (n,) values whose mean is the reported metric (before rounding);
            NaN for queries excluded from that mean.
        details: their components, e.g. ``ap`` (n, thresholds).
    """

    qids: list[int | str]
    vids: list[str]
    values: dict[str, Floats]
    details: dict[str, Floats] = field(default_factory=dict)

    def as_json(self) -> dict[str, dict[str, object]]:
        """The details by ``str(qid)``, as plain lists."""
        plain = {name: table.tolist() for name, table in self.details.items()}
        return {
            str(qid): {name: rows[query] for name, rows in plain.items()}
            for query, qid in enumerate(self.qids)
        }


# Draws per block, so that memory does not grow with the number of resamples.
_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True)
class BootstrapSettings:
    """Number of resamples, seed, and confidence level."""

    resamples: int = 10_000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0.0 < self.confidence < 1.0:
            raise ValueError(f"needs resamples >= 1 and confidence in (0, 1): {self}")


@dataclass(frozen=True, slots=True)
class Interval:
    """A metric, its bootstrap interval, and its sample sizes."""

    value: float
    low: float
    high: float
    queries: int
    videos: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Second system minus first: mean difference, interval, and fraction of resamples above 0."""

    difference: Interval
    share_above_zero: float

    def as_json(self) -> dict[str, float]:
        """JSON-able form: the difference, the ends of its interval, and the fraction."""
        gain = self.difference
        return {
            "difference": gain.value,
            "low": gain.low,
            "high": gain.high,
            "share_above_zero": self.share_above_zero,
        }


def confidence_interval(
    system: PerQuery, figure: str, settings: BootstrapSettings | None = None
) -> Interval:
    """Bootstrap interval of one metric of one system.

    Raises:
        DataError: the evaluation has no such metric, or no query has a value.
    """
    settings = settings or BootstrapSettings()
    values = _figure(system, figure)
    means = _resampled(values[None], system.vids, settings)[:, 0]
    return _interval(values, system.vids, means, settings)


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
        DataError: the two were evaluated on different queries, or lack the metric.
    """
    settings = settings or BootstrapSettings()
    values = _figure_in_order(second, first, figure) - _figure(first, figure)
    means = _resampled(values[None], first.vids, settings)[:, 0]
    return Comparison(_interval(values, first.vids, means, settings), float(np.mean(means > 0.0)))


def bootstrap_over_seeds(
    first: Sequence[PerQuery],
    second: Sequence[PerQuery],
    figure: str,
    settings: BootstrapSettings | None = None,
) -> Comparison:
    """How much better training `second` is than training `first`, each run with several seeds.

    A resample draws videos, the same for both systems, and then runs of each system independently,
    because equal seeds of two networks are unrelated. The interval thus covers the variance between
    test sets and between trainings; `paired_bootstrap` of the seeds' means would omit the latter.
    S - 1 of S runs are drawn, because drawing S yields only (S - 1) / S of the variance between
    runs (McCarthy & Snowden 1985), a third too little with three. With one run per system this is
    `paired_bootstrap`.

    Args:
        first: the runs of the system to beat.
        second: the runs of the candidate.
        figure: a key of `PerQuery.values`.
        settings: resamples, seed, confidence.

    Raises:
        DataError: two runs were evaluated on different queries, or lack the metric.
    """
    settings = settings or BootstrapSettings()
    systems = [
        np.stack([_figure_in_order(run, first[0], figure) for run in runs])
        for runs in (first, second)
    ]
    vids = first[0].vids
    means = _resampled(np.concatenate(systems), vids, settings)
    generator = np.random.default_rng(derive_seed(settings.seed, "bootstrap of runs"))
    of_first, of_second = (
        _mean_of_drawn_runs(generator, part) for part in np.split(means, [len(first)], axis=1)
    )
    gains = of_second - of_first
    values = systems[1].mean(axis=0) - systems[0].mean(axis=0)
    return Comparison(_interval(values, vids, gains, settings), float(np.mean(gains > 0.0)))


def _mean_of_drawn_runs(generator: np.random.Generator, means: Floats) -> Floats:
    """(resamples, runs) -> (resamples,): the mean of the runs that each resample draws."""
    resamples, runs = means.shape
    drawn = generator.integers(runs, size=(resamples, max(runs - 1, 1)))
    chosen: Floats = np.take_along_axis(means, drawn, axis=1).mean(axis=1)
    return chosen


def _figure_in_order(system: PerQuery, like: PerQuery, figure: str) -> Floats:
    """The metric of each query, in the query order of `like`."""
    if dict(zip(like.qids, like.vids, strict=True)) != dict(
        zip(system.qids, system.vids, strict=True)
    ):
        raise DataError("the two systems were evaluated on different queries; nothing to compare")
    place = {qid: query for query, qid in enumerate(system.qids)}
    return _figure(system, figure)[[place[qid] for qid in like.qids]]


def _figure(system: PerQuery, figure: str) -> Floats:
    if figure not in system.values:
        known = ", ".join(sorted(system.values))
        raise DataError(f"the evaluation has no metric {figure!r} (it has {known})")
    values = system.values[figure]
    if np.isnan(values).all():
        raise DataError(f"no query counts for the metric {figure!r}")
    return values


def _resampled(values: Floats, vids: list[str], settings: BootstrapSettings) -> Floats:
    """(rows, queries) -> (resamples, rows): means over the queries without NaN in any row.

    The draws depend only on the seed and the set of videos, so metrics are comparable.
    """
    counted = ~np.isnan(values).any(axis=0)
    _, video_of = np.unique(np.array(vids), return_inverse=True)
    n_videos = int(video_of.max()) + 1
    sums = np.stack(
        [np.bincount(video_of, np.where(counted, row, 0.0), n_videos) for row in values], axis=1
    )
    sizes = np.bincount(video_of, counted, n_videos)
    generator = np.random.default_rng(derive_seed(settings.seed, "bootstrap"))
    means = []
    rows = max(1, _BLOCK // n_videos)
    for start in range(0, settings.resamples, rows):
        count = min(rows, settings.resamples - start)
        times = _draw(generator, count, n_videos)
        size = times @ sizes
        # A resample without any video of a rare length group has no mean and is skipped.
        means.append((times @ sums)[size > 0.0] / size[size > 0.0, None])
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
