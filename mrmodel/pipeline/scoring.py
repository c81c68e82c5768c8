"""How every stage finishes and scores predictions: one rule, from the section `evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mrmodel.config import Config
from mrmodel.evaluate.protocols import Protocol, Scores
from mrmodel.evaluate.rows import Row
from mrmodel.evaluate.run import get_protocol
from mrmodel.predict.postprocess import PostprocessSettings

log = logging.getLogger(__name__)


class Judge:
    """Post-processing and metrics of one configuration."""

    def __init__(self, config: Config) -> None:
        self.settings = config.evaluate
        self.clip_len_s = config.features.clip_len_s
        self.protocol: Protocol = get_protocol(self.settings.protocol)

    @property
    def postprocess(self) -> PostprocessSettings:
        """How windows are finished; `official` mode repeats the published way of the data set."""
        if self.settings.mode == "official":
            return self.protocol.official_postprocess(self.clip_len_s)
        return PostprocessSettings(
            round_to_s=self.clip_len_s if self.settings.round_to_clips else None,
            max_windows=self.settings.max_windows,
            nms_iou=self.settings.nms_iou,
        )

    @property
    def training_postprocess(self) -> PostprocessSettings:
        """The same for validation in training, by no setting that may be chosen afterwards.

        Those are no parameters of the training stages, so they must not decide which weights win.
        """
        if self.settings.mode == "official":
            return self.postprocess
        return PostprocessSettings(round_to_s=self.clip_len_s)

    def score(self, truth: Sequence[Row], predictions: Sequence[Row]) -> Scores:
        """All metrics.

        A query without a prediction (its video has no features) is a miss in clean mode; official
        mode, which knows no misses, scores the others and says so.
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

    def figures(self, scores: Scores) -> dict[str, float]:
        """The few figures to show, the one that chooses a model first; undefined ones left out."""
        found = self.protocol.figures(scores.metrics)
        first = self.protocol.headline
        ordered = {first: found.get(first), **found}
        return {name: value for name, value in ordered.items() if value is not None}
