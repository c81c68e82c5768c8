"""Charades-STA and TACoS: one moment per query, recall at fixed ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mrmodel.evaluate import moment_retrieval
from mrmodel.evaluate.protocols import Protocol, Scores, empty_per_query, percent
from mrmodel.evaluate.ragged import Mode
from mrmodel.evaluate.rows import Pairing
from mrmodel.predict.postprocess import PostprocessSettings


class Charades(Protocol):
    """Recall at 1 and 5, mean IoU and mAP of windows, without length groups.

    Clip scores in the submission are ignored.
    """

    name = "charades"
    headline = "R1@0.7"

    def main_metrics(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        """Recall at the usual thresholds, mean IoU and mean mAP."""
        chosen: dict[str, float | None] = {}
        for recall in ("R1", "R5"):
            chosen |= {
                f"{recall}@{level}": metrics[recall][level] for level in ("0.3", "0.5", "0.7")
            }
        return chosen | {"mIoU": metrics["mIoU"], "mAP": metrics["mAP"]["average"]}

    def official_postprocess(self, clip_len_s: float) -> PostprocessSettings:
        """Clamp to 150 s (360 s for the sub-second clips of VGG features), then round to clips."""
        longest = 360.0 if clip_len_s < 1.0 else 150.0
        return PostprocessSettings(official=True, clamp_s=(0.0, longest), round_to_s=clip_len_s)

    def _score(self, pairing: Pairing, mode: Mode) -> Scores:
        arrays = moment_retrieval.moment_arrays(pairing, mode)
        ap = moment_retrieval.average_precision(arrays, moment_retrieval.AP_THRESHOLDS)
        iou = moment_retrieval.best_iou(arrays.listed[:, :5], arrays.truth, arrays.truth_valid)
        levels = np.array(moment_retrieval.RECALL_THRESHOLDS)
        first, five = iou[:, :1] >= levels, iou.max(axis=1, keepdims=True) >= levels
        per_query = empty_per_query(pairing)
        values = per_query.values
        values["mIoU"], values["mAP"] = 100.0 * iou[:, 0], 100.0 * ap.mean(axis=1)
        for column, level in enumerate(moment_retrieval.RECALL_THRESHOLDS):
            values[f"R1@{level}"] = np.where(first[:, column], 100.0, 0.0)
            values[f"R5@{level}"] = np.where(five[:, column], 100.0, 0.0)
        per_query.details.update(ap=ap, top1_iou=iou[:, 0], top5_iou=iou.max(axis=1))
        order = pairing.order
        metrics = {
            "R1": moment_retrieval.threshold_block(first, moment_retrieval.RECALL_THRESHOLDS),
            "mIoU": percent(iou[order, 0].mean()),
            "mAP": moment_retrieval.precision_block(ap[order]),
            "R5": moment_retrieval.threshold_block(five, moment_retrieval.RECALL_THRESHOLDS),
            "top1_iou": iou[:, 0].tolist(),
        }
        return Scores(metrics, per_query)


class Tacos(Charades):
    """As Charades-STA; published systems do not clamp windows, so they may start below 0."""

    name = "tacos"

    def official_postprocess(self, clip_len_s: float) -> PostprocessSettings:
        """Round to clips, no clamp."""
        return PostprocessSettings(official=True, clamp_s=None, round_to_s=clip_len_s)
