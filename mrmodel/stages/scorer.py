"""Post-processing and scoring of predictions, according to the section `evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mrmodel.config.postprocess import PostprocessConfig
from mrmodel.config.schema import Config
from mrmodel.data.annotations import MAX_RATING, read_annotations
from mrmodel.errors import DataError
from mrmodel.evaluate.protocols import Protocol, Scores
from mrmodel.evaluate.rows import Row
from mrmodel.evaluate.run import get_protocol
from mrmodel.files import read_object
from mrmodel.predict.postprocess import Postprocess
from mrmodel.stages.paths import SPLITS, Paths
from mrmodel.types import Annotation

log = logging.getLogger(__name__)


class Scorer:
    """Post-processing and metrics of one configuration."""

    def __init__(self, config: Config) -> None:
        self.settings = config.evaluate
        self.clip_len_s = config.features.clip_len_s
        self.protocol: Protocol = get_protocol(self.settings.protocol)

    def postprocess(self, config: PostprocessConfig) -> Postprocess:
        """Post-processing of a model.

        Args:
            config: candidate windows and, in ``clean`` mode, the steps after them; ``official``
                mode uses the published steps, of `config.official` or else of the data set.
        """
        if self.settings.mode == "official":
            finish = self.protocol.official_postprocess(self.clip_len_s)
            return Postprocess.published(config, finish)
        return Postprocess.of(config, self.clip_len_s)

    def score(self, truth: Sequence[Row], predictions: Sequence[Row]) -> Scores:
        """All metrics.

        A query without a prediction (its video has no features) is a miss in clean mode; official
        mode scores only the others. Both log a warning.
        """
        rows = list(predictions)
        missing = {row["qid"] for row in truth} - {row["qid"] for row in rows}
        if missing:
            log.warning("%d of %d queries have no prediction", len(missing), len(truth))
        if self.settings.mode == "official":
            return self.protocol.score(truth, rows, "official", allow_missing=True)
        empty: Row = {"pred_relevant_windows": [], "pred_saliency_scores": []}
        rows += [{"qid": row["qid"], **empty} for row in truth if row["qid"] in missing]
        return self.protocol.score(truth, rows, "clean")

    def main_metrics(self, scores: Scores) -> dict[str, float]:
        """The main metrics, the headline first; undefined ones are omitted."""
        found = self.protocol.main_metrics(scores.metrics)
        first = self.protocol.headline
        ordered = {first: found.get(first), **found}
        return {name: value for name, value in ordered.items() if value is not None}


def read_rows_if_any(
    path: Path, clip_len_s: float, max_rating: float = MAX_RATING
) -> list[Annotation]:
    """The annotations of a file, which may be empty; their ratings reach to `max_rating`."""
    if path.stat().st_size == 0:
        return []
    return read_annotations(path, clip_len_s, max_rating)


def reported_split(paths: Paths) -> str:
    """The split that metrics are reported on: ``test``, or ``val`` if there is no test split."""
    path = paths.corpus / "corpus.json"
    split = read_object(path).get("reported_split")
    if split not in SPLITS:
        rule = f"reported_split = {split!r}: expected one of {', '.join(SPLITS)}"
        raise DataError(rule, file=path)
    return str(split)
