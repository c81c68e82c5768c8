"""TVSum and YouTube Highlights: clip scores of whole videos, by domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mrmodel.evaluate import highlight, ragged
from mrmodel.evaluate.protocols import Protocol, Scores, empty_per_query, saliency_lists
from mrmodel.evaluate.ragged import Floats, Mode, Ragged
from mrmodel.evaluate.rows import Pairing, RowFile, show
from mrmodel.predict.postprocess import PostprocessSettings


class TVSum(Protocol):
    """Top-5 mAP of clip scores against 20 raters.

    Annotations: `saliency_scores` holds the raters' ratings of **every** clip in order
    (`relevant_clip_ids` is optional; if given it is 0, 1, 2 ...). Predictions:
    `pred_saliency_scores`. If every annotation has a `domain`, averages over domains are added.
    """

    name = "tvsum"
    headline = "mAP"
    best = 1.0
    decimals = 5

    def main_metrics(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        """The mAP over all videos (a fraction), then by domain if the annotations have domains."""
        domains: dict[str, float | None] = metrics.get("mAP_per_domain", {})
        chosen: dict[str, float | None] = {"mAP": metrics["mAP"]}
        if domains:
            chosen["mAP_domain_average"] = metrics["mAP_domain_average"]
        return chosen | {f"mAP {domain}": value for domain, value in domains.items()}

    def official_postprocess(self, clip_len_s: float) -> PostprocessSettings:
        """No changes: windows are not scored."""
        return PostprocessSettings(official=True)

    def _score(self, pairing: Pairing, mode: Mode) -> Scores:
        ratings = self._ratings(pairing.annotations)
        scores = saliency_lists(pairing, mode)
        by_rater = np.array(
            [
                self._video_ap(video_scores, video_ratings)
                for video_scores, video_ratings in zip(
                    _split(scores, ratings, mode), _lists(ratings), strict=True
                )
            ]
        )
        per_video = by_rater.mean(axis=1)
        per_query = empty_per_query(pairing)
        per_query.values["mAP"] = per_video
        metrics = {
            # As published, over videos and raters at once.
            "mAP": _fraction(by_rater[pairing.order]),
            "mAP_per_video": [_fraction(v) for v in per_video],
        }
        return Scores(metrics | self._by_domain(pairing.annotations, per_video), per_query)

    def _video_ap(self, scores: Floats, ratings: Floats) -> Floats:
        """(R,) of the raters of a video; NaN if the video is excluded."""
        return highlight.tvsum_ap(scores, ratings)

    def _ratings(self, rows: RowFile) -> Ragged:
        ratings = ragged.rating_lists(rows)
        for index in np.flatnonzero(ratings.counts == 0)[:1].tolist():
            raise rows.error(index, "'saliency_scores' is empty; every clip needs its ratings")
        for index, row in enumerate(rows):
            expected = list(range(ratings.counts[index]))
            if row.get("relevant_clip_ids", expected) not in (expected, tuple(expected)):
                rule = f"'relevant_clip_ids' must be 0..{len(expected) - 1}: every clip is rated"
                raise rows.error(index, rule)
        return ratings

    def _by_domain(self, rows: RowFile, per_video: Floats) -> dict[str, Any]:
        if not ragged.has_field(rows, "domain"):
            return {}
        for index, row in enumerate(rows):
            if not isinstance(row["domain"], str):
                raise rows.error(index, f"'domain' must be a string, found {show(row['domain'])}")
        domains = np.array([row["domain"] for row in rows])
        means = {name: _mean(per_video[domains == name]) for name in sorted(set(domains.tolist()))}
        average = _mean(np.array([np.nan if mean is None else mean for mean in means.values()]))
        return {
            "mAP_per_domain": {name: _round(mean) for name, mean in means.items()},
            "mAP_domain_average": _round(average),
        }


class YouTubeHighlights(TVSum):
    """mAP of clip scores against one binary label per clip; records as for `TVSum`, one rater.

    A video without a positive clip is excluded from the mean; its own metric is null.
    """

    name = "youtube_hl"

    def official_postprocess(self, clip_len_s: float) -> PostprocessSettings:
        """Round to clips, no clamp."""
        return PostprocessSettings(official=True, round_to_s=clip_len_s)

    def _video_ap(self, scores: Floats, ratings: Floats) -> Floats:
        ap = highlight.youtube_ap(scores, ratings[:, 0])
        return np.array([np.nan if ap is None else ap])

    def _ratings(self, rows: RowFile) -> Ragged:
        ratings = super()._ratings(rows)
        if ratings.values.shape[1] != 1:
            rule = f"'saliency_scores' must hold one label a clip, found {ratings.values.shape[1]}"
            raise rows.error(0, rule)
        return ratings


def _lists(ragged: Ragged) -> list[Floats]:
    return np.split(ragged.values, np.cumsum(ragged.counts)[:-1])


def _split(scores: Ragged, ratings: Ragged, mode: Mode) -> list[Floats]:
    """Each video's scores; in clean mode missing clips rank last instead of being omitted.

    An empty list stays empty: nothing is retrieved, so the metric is 0.
    """
    lists = _lists(scores)
    if mode == "official":
        return lists
    return [
        np.pad(values, (0, max(0, count - len(values))), constant_values=-np.inf)
        if len(values)
        else values
        for values, count in zip(lists, ratings.counts.tolist(), strict=True)
    ]


def _mean(values: Floats) -> float | None:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else None


def _round(value: float | None) -> float | None:
    return None if value is None else float(np.round(value, 5))


def _fraction(values: Floats | float) -> float | None:
    return _round(_mean(np.atleast_1d(np.asarray(values, dtype=np.float64))))
