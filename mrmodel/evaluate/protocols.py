"""Evaluation protocols: the metrics of each data set, and its post-processing of windows.

`official` mode reproduces the published evaluators, quirks included. `clean` mode ranks predictions
by score before truncating them, clamps windows to [0, duration], scores a query without predictions
as a miss (instead of rejecting it), ranks missing clips last (instead of as score 0) and rejects
windows that end before they start and repeated predictions. A new protocol is one class, here or in
a file of its own, and one line in `components.PROTOCOLS`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mrmodel.evaluate import ragged
from mrmodel.evaluate.ragged import Mode, Ragged
from mrmodel.evaluate.rows import Pairing, Row, as_row_file, pair_rows
from mrmodel.evaluate.significance import PerQuery
from mrmodel.predict.postprocess import PostprocessSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scores:
    """One evaluation: the metrics (JSON-able) and the per-query values."""

    metrics: dict[str, Any]
    per_query: PerQuery


class Protocol(ABC):
    """Evaluation of one data set.

    Attributes:
        name: as in `components.PROTOCOLS`.
        headline: the metric that selects a model, a key of `main_metrics`.
        columns: keys of `main_metrics` shown in tables (at most ten), and their headings;
            empty: the first ten under their own names.
        best: highest possible value of the headline, 100 for percentages.
        decimals: number of decimals of a metric.
    """

    name: ClassVar[str]
    headline: ClassVar[str]
    columns: ClassVar[Mapping[str, str]] = {}
    best: ClassVar[float] = 100.0
    decimals: ClassVar[int] = 2

    def score(
        self,
        annotations: Sequence[Row],
        predictions: Sequence[Row],
        mode: Mode = "official",
        *,
        allow_missing: bool = False,
    ) -> Scores:
        """Score predictions against annotations (both as in the files; see `rows`).

        Args:
            annotations: ground truth, each qid once.
            predictions: the submission, in any order.
            mode: see the module docstring.
            allow_missing: score the queries that both have instead of raising an error.

        Raises:
            DataError: a record is invalid.
        """
        pairing = pair_rows(
            as_row_file(annotations),
            as_row_file(predictions),
            repeats=mode == "official",
            allow_missing=allow_missing,
        )
        repeated = len(pairing.owners) - len(pairing.latest)
        if repeated:
            log.warning("%d prediction rows repeat a qid", repeated)
        return self._score(pairing, mode)

    def evaluate(
        self,
        annotations: Sequence[Row],
        predictions: Sequence[Row],
        mode: Mode = "official",
        *,
        allow_missing: bool = False,
    ) -> dict[str, Any]:
        """The metrics alone; see `score`."""
        return self.score(annotations, predictions, mode, allow_missing=allow_missing).metrics

    def per_query(
        self,
        annotations: Sequence[Row],
        predictions: Sequence[Row],
        mode: Mode = "official",
        *,
        allow_missing: bool = False,
    ) -> PerQuery:
        """The per-query metrics alone; see `score`."""
        return self.score(annotations, predictions, mode, allow_missing=allow_missing).per_query

    def shown(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """At most ten of the metrics `metrics`, under the names used in papers."""
        names = self.columns or {name: name for name in metrics}
        chosen = {short: metrics[name] for name, short in names.items() if name in metrics}
        return dict(list(chosen.items())[:10])

    @abstractmethod
    def main_metrics(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        """The main metrics by name; None if no query has a value."""

    @abstractmethod
    def official_postprocess(self, clip_len_s: float) -> PostprocessSettings:
        """Post-processing of the published systems on this data set."""

    @abstractmethod
    def _score(self, pairing: Pairing, mode: Mode) -> Scores: ...


def saliency_lists(pairing: Pairing, mode: Mode) -> Ragged:
    """Each query's clip scores; the last of repeated predictions is used.

    Raises:
        DataError: a list is missing or holds anything but finite numbers, or is empty in
            `official` mode, which defines no value for it.
    """
    scores = ragged.number_lists(pairing.predictions, "pred_saliency_scores")
    empty = np.flatnonzero(scores.counts == 0)
    if len(empty) and mode == "official":
        rule = "'pred_saliency_scores' is empty, which only mode 'clean' scores (as a miss)"
        raise pairing.predictions.error(int(empty[0]), rule)
    return scores.lists(pairing.latest)


def empty_per_query(pairing: Pairing) -> PerQuery:
    """The queries of an evaluation, without metrics yet."""
    rows = pairing.annotations
    return PerQuery([row["qid"] for row in rows], ragged.video_ids(rows), {})


def percent(value: float) -> float | None:
    """Percentage with two decimals; null in JSON if no query has a value."""
    return None if np.isnan(value) else round(100.0 * float(value), 2)
