"""The QVHighlights protocol (Lei et al. 2021, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mrmodel.evaluate import highlight, moment_retrieval, ragged
from mrmodel.evaluate.protocols import Protocol, Scores, empty_per_query, percent, saliency_lists
from mrmodel.evaluate.ragged import Mode
from mrmodel.evaluate.rows import Pairing
from mrmodel.evaluate.significance import PerQuery
from mrmodel.predict.postprocess import PostprocessSettings


class QVHighlights(Protocol):
    """Moment retrieval by window length and highlight detection by rating level.

    A submission may have windows, clip scores or both; only what is present is scored.
    """

    name = "qvhighlights"
    headline = "MR-full-mAP"
    # Length of ground-truth windows in seconds; `full` is unbounded.
    lengths: ClassVar[dict[str, tuple[float, float]]] = {
        "short": (0.0, 10.0),
        "middle": (10.0, 30.0),
        "long": (30.0, 150.0),
    }
    clip_len_s: ClassVar[float] = 2.0
    columns: ClassVar[dict[str, str]] = {
        "MR-full-R1@0.5": "R1@0.5",
        "MR-full-R1@0.7": "R1@0.7",
        "MR-full-mAP@0.5": "mAP@0.5",
        "MR-full-mAP@0.75": "mAP@0.75",
        "MR-full-mAP": "mAP",
        "MR-short-mAP": "short mAP",
        "MR-middle-mAP": "middle mAP",
        "MR-long-mAP": "long mAP",
        "HL-min-VeryGood-mAP": "HL mAP",
        "HL-min-VeryGood-Hit1": "HL Hit1",
    }

    def main_metrics(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        """The `brief` block."""
        return dict(metrics["brief"])

    def official_postprocess(self, clip_len_s: float) -> PostprocessSettings:
        """Clamp to 150 s whatever the video's length, then round to clips."""
        return PostprocessSettings(official=True, clamp_s=(0.0, 150.0), round_to_s=clip_len_s)

    def _score(self, pairing: Pairing, mode: Mode) -> Scores:
        rows = pairing.predictions
        has_windows = ragged.has_field(rows, "pred_relevant_windows")
        has_saliency = ragged.has_field(rows, "pred_saliency_scores")
        if not has_windows and not has_saliency:
            raise rows.error(0, "has neither 'pred_relevant_windows' nor 'pred_saliency_scores'")
        blocks: dict[str, Any] = {}
        per_query = empty_per_query(pairing)
        if has_windows:
            self._score_moments(pairing, mode, blocks, per_query)
        if has_saliency:
            self._score_highlights(pairing, mode, blocks, per_query)
        return Scores({"brief": _brief(blocks), **dict(sorted(blocks.items()))}, per_query)

    def _score_moments(
        self, pairing: Pairing, mode: Mode, blocks: dict[str, Any], per_query: PerQuery
    ) -> None:
        arrays = moment_retrieval.moment_arrays(pairing, mode)
        n, place = len(pairing.annotations), np.argsort(pairing.order)
        parts = {"full": (np.arange(n), arrays)}
        for length, (shortest, longest) in self.lengths.items():
            open_ended = mode == "clean" and length == "long"
            parts[length] = arrays.within(shortest, np.inf if open_ended else longest)
        for length, (queries, part) in parts.items():
            ap = moment_retrieval.average_precision(part, moment_retrieval.AP_THRESHOLDS)
            iou = moment_retrieval.best_iou(part.listed[:, :1], part.truth, part.truth_valid)[:, 0]
            hits = iou[:, None] >= np.array(moment_retrieval.AP_THRESHOLDS)
            blocks[length] = {
                "MR-mAP": moment_retrieval.precision_block(ap[np.argsort(place[queries])]),
                "MR-R1": moment_retrieval.threshold_block(hits, moment_retrieval.AP_THRESHOLDS),
            }
            for name, values in (
                (f"MR-{length}-mAP", ap.mean(axis=1)),
                (f"MR-{length}-mAP@0.5", ap[:, 0]),
                (f"MR-{length}-mAP@0.75", ap[:, 5]),
                (f"MR-{length}-R1@0.5", hits[:, 0]),
                (f"MR-{length}-R1@0.7", hits[:, 4]),
            ):
                per_query.values[name] = np.full(n, np.nan)
                per_query.values[name][queries] = 100.0 * values
            if length == "full":
                per_query.details.update(ap=ap, top1_iou=iou)

    def _score_highlights(
        self, pairing: Pairing, mode: Mode, blocks: dict[str, Any], per_query: PerQuery
    ) -> None:
        arrays = self._highlight_arrays(pairing, mode)
        scores = highlight.rate_highlights(arrays, missing_clips_last=mode == "clean")
        for level, name in enumerate(highlight.RATING_THRESHOLDS):
            ap, hit = scores.ap[:, level], scores.hit[:, level]
            blocks[f"HL-min-{name}"] = {
                "HL-mAP": percent(scores.ap[pairing.order, level].mean()),
                "HL-Hit1": percent(hit.mean()),
            }
            per_query.values[f"HL-min-{name}-mAP"] = 100.0 * ap.mean(axis=1)
            per_query.values[f"HL-min-{name}-Hit1"] = 100.0 * hit
        per_query.details.update(hl_ap=scores.ap, hl_hit=scores.hit)

    def _highlight_arrays(self, pairing: Pairing, mode: Mode) -> highlight.HighlightArrays:
        rows = pairing.annotations
        clip_ids, ratings = ragged.clip_ratings(rows)
        n_clips = np.floor_divide(ragged.durations(rows), self.clip_len_s).astype(np.int64)
        for query in np.flatnonzero(n_clips == 0)[:1].tolist():
            raise rows.error(query, f"the video is shorter than a clip of {self.clip_len_s:g} s")
        beyond = np.flatnonzero(clip_ids.values >= n_clips[clip_ids.owners()])
        for query in clip_ids.owners()[beyond[:1]].tolist():
            clip, count = clip_ids.values[beyond[0]], n_clips[query]
            rule = f"clip {clip:g} of 'relevant_clip_ids' is beyond the video's {count} clips"
            raise rows.error(query, rule)
        if not ratings.values.size:
            raise rows.error(0, "no row has a rated clip, so highlights cannot be scored")
        return highlight.HighlightArrays(saliency_lists(pairing, mode), clip_ids, ratings, n_clips)


def _brief(blocks: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics that papers report."""
    brief: dict[str, float | None] = {}
    if "full" in blocks:
        full = blocks["full"]
        brief |= {f"MR-full-R1@{level}": full["MR-R1"][level] for level in ("0.5", "0.7")}
        brief["MR-full-mAP"] = full["MR-mAP"]["average"]
        brief |= {f"MR-full-mAP@{level}": full["MR-mAP"][level] for level in ("0.5", "0.75")}
        for length in ("long", "middle", "short"):
            brief[f"MR-{length}-mAP"] = blocks[length]["MR-mAP"]["average"]
    for name in highlight.RATING_THRESHOLDS:
        if f"HL-min-{name}" in blocks:
            block = blocks[f"HL-min-{name}"]
            brief |= {
                f"HL-min-{name}-mAP": block["HL-mAP"],
                f"HL-min-{name}-Hit1": block["HL-Hit1"],
            }
    return brief
