"""From heads to candidate windows: scores, choice of anchors, weighted boxes fusion (section 6).

All of it is elementwise over samples: a sample's numbers depend on nothing else in its batch, not
even in the last bit, so that tuning on stored detections repeats what the model does. Shapes beyond
those of output.py: ``n`` spans of one model, ``K`` candidates. An unused column holds a span of no
width with score 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mrmodel.config.postprocess import AnchorSelection, FusionSettings, PostprocessConfig
from mrmodel.spans import EPS, cxw_to_xx, xx_to_cxw

if TYPE_CHECKING:
    from mrmodel.models.sg_detr.output import RawDetections

Floats = NDArray[np.float32]

# Probability and centerness of an anchor count alike (section 6, step 2).
_ANCHOR_ALPHA = 0.5


def detection_scores(logits: Tensor, iou_logits: Tensor | None, alpha: float) -> Tensor:
    """S_det = p^alpha IoU^(1 - alpha) (eq. 10), or p without IoU head; float32 in [0, 1].

    Computed in log space: p^alpha has an infinite slope at p = 0 (section 10, pitfall 5).
    """
    log_score = _log_sigmoid(logits)
    if iou_logits is not None:
        log_score = alpha * log_score + (1.0 - alpha) * _log_sigmoid(iou_logits)
    return log_score.exp()


def select_anchors(raw: RawDetections, settings: AnchorSelection) -> tuple[Tensor, Tensor]:
    """The anchors that enter fusion or are reported alone (section 6, step 2).

    Ranked by p^.5 centerness^.5, which must be above `min_score`; of the best `top_k`, those that
    survive non-maximum suppression, at most `keep`. A span goes when its IoU with a better one is
    above `nms_iou`. A span outside the video is of no width: it goes, unless `keep_empty`.

    Returns:
        (B, keep, 2) (start, end) in [0, 1] and (B, keep) scores, best first.

    Raises:
        ValueError: there is no anchor head.
    """
    logits, spans_cxw = raw.anchor_logits, raw.anchor_spans_cxw
    if logits is None or spans_cxw is None:
        raise ValueError("there are no anchors to choose from")
    start, end = _clipped(spans_cxw).unbind(-1)
    scores = detection_scores(logits, raw.anchor_centerness, _ANCHOR_ALPHA)
    usable = scores > settings.min_score
    if not settings.keep_empty:
        usable &= end > start
    ranked, order = scores.where(usable, 0.0).sort(dim=1, descending=True, stable=True)
    best = order[:, : settings.top_k]
    left = ranked[:, : settings.top_k]
    starts, ends = (_on_host(values.gather(1, best)) for values in (start, end))
    scored = _on_host(left).copy()
    rows = np.arange(len(scored))
    chosen = []
    for _ in range(settings.keep):
        # Ranked and zeroed once gone: the maximum is the first that is left.
        place = rows, scored.argmax(axis=1)
        first, last = starts[place], ends[place]
        chosen.append(np.stack((first, last, scored[place]), axis=1))
        scored[_iou(starts, ends, first, last) > settings.nms_iou] = 0.0
        scored[place] = 0.0
    table = torch.from_numpy(np.stack(chosen, axis=1)).to(scores.device)
    table = table * (table[..., 2:] > 0)
    return table[..., :2], table[..., 2]


def fuse(
    spans_xx: Sequence[Tensor], scores: Sequence[Tensor], settings: FusionSettings
) -> tuple[Tensor, Tensor]:
    """Weighted boxes fusion on a line (section 6.1; Solovyev et al. 2021).

    Spans are taken in descending weighted score, equal ones in the order given. A span joins the
    fused span with which it has the best IoU (the earliest of equal ones) if that is above
    `iou_thr`, and the fused ends become the score-weighted mean of the members; otherwise it
    starts a new one. With ``avg`` the score is the members' mean times min(models, members) over
    the sum of weights, which may exceed 1 where weights differ; with ``max`` it is the best
    member's over the largest weight. Spans below `skip`, without score or without width are
    dropped, inverted ends are swapped.

    Args:
        spans_xx: of each model, (B, n_i, 2) (start, end).
        scores: of each model, (B, n_i), at least 0.
        settings: one weight a model.

    Returns:
        (B, K, 2) (start, end) and (B, K), K the number of all spans; in order of opening.
    """
    weights = settings.weights
    weighted = [score * weight for score, weight in zip(scores, weights, strict=True)]
    ends = torch.cat(list(spans_xx), dim=1)
    start, end = ends.amin(dim=-1), ends.amax(dim=-1)
    given = torch.cat(list(scores), dim=1)
    usable = (given >= settings.skip) & (end > start)
    ranked, order = (
        torch.cat(weighted, dim=1).where(usable, 0.0).sort(dim=1, descending=True, stable=True)
    )
    clusters = _cluster(start.gather(1, order), end.gather(1, order), ranked, settings.iou_thr)
    members = clusters.members
    if settings.conf == "max":
        fused = clusters.best / max(weights)
    else:
        agreeing = members.clamp(max=len(weights)) / sum(weights)
        fused = clusters.total / members.clamp(min=1.0) * agreeing
    return torch.stack((clusters.start, clusters.end), dim=-1), fused


def combine(raw: RawDetections, settings: PostprocessConfig) -> tuple[Tensor, Tensor]:
    """Candidate windows of each sample, best first (section 6, steps 1 to 3).

    Where there are anchors and `fusion.enabled`, the decoder's windows are fused with theirs; K is
    then Q + `anchors.keep`, otherwise Q. Fused scores are divided by the most that the weights
    allow, which is 1 for equal weights, so that they stay in [0, 1] and in order.

    Returns:
        (B, K, 2) (centre, width) within [0, 1] and (B, K) scores in [0, 1]; equal scores keep the
        order of the queries.
    """
    spans = _clipped(raw.spans_cxw)
    scores = detection_scores(raw.logits, raw.iou_logits, settings.alpha)
    if settings.fusion.enabled and raw.anchor_logits is not None:
        anchor_spans, anchor_scores = select_anchors(raw, settings.anchors)
        spans, scores = fuse([spans, anchor_spans], [scores, anchor_scores], settings.fusion)
        scores = (scores / _ceiling(settings.fusion)).clamp(max=1.0)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return xx_to_cxw(spans.gather(1, order[..., None].expand_as(spans))), scores


def windows_of(
    raw: RawDetections, settings: PostprocessConfig, system: str | None = None
) -> tuple[Tensor, Tensor]:
    """Candidate windows of one of `SYSTEMS`; None: those that are served, see `combine`.

    ``anchors``: as `select_anchors` gives them. ``decoder``: in the published order, by class
    probability, and with the published score, which is S_det of p and IoU that are rounded to four
    decimals (`PostProcessorDETR` of the authors' code).

    Returns:
        (B, K, 2) (centre, width) within [0, 1] and (B, K) scores.
    """
    if system == "anchors":
        spans, scores = select_anchors(raw, settings.anchors_alone or settings.anchors)
        return xx_to_cxw(spans), scores
    if system is None:
        return combine(raw, settings)
    order = raw.logits.float().sigmoid().sort(dim=1, descending=True, stable=True)[1]
    spans = _clipped(raw.spans_cxw).gather(1, order[..., None].expand(-1, -1, 2))
    scores = _decimals(raw.logits)
    if raw.iou_logits is not None:
        quality = _decimals(raw.iou_logits)
        if settings.alpha == 0.5:  # as published, to the last bit: it decides between equal scores
            scores = (scores * quality).sqrt()
        else:
            scores = scores.pow(settings.alpha) * quality.pow(1.0 - settings.alpha)
    return xx_to_cxw(spans), scores.gather(1, order)


@dataclass(slots=True)
class _Clusters:
    """Fused spans in order of opening, all (B, K): ends, sum and best of the members' scores."""

    start: Tensor
    end: Tensor
    total: Tensor
    best: Tensor
    members: Tensor


def _cluster(start: Tensor, end: Tensor, scores: Tensor, iou_thr: float) -> _Clusters:
    """Group (B, K) ends that come in descending score; a score of 0 is no span."""
    starts, ends, ranked = map(_on_host, (start, end, scores))
    fused_start, fused_end, start_sum, end_sum, total, best, members = np.zeros(
        (7, *ranked.shape), dtype=np.float32
    )
    rows = np.arange(len(ranked))
    opened = np.zeros_like(rows)
    for rank in range(int((ranked > 0).sum(axis=1).max(initial=0))):
        first, last, score = starts[:, rank], ends[:, rank], ranked[:, rank]
        live = score > 0
        # At most `rank` clusters are open by now; the next free one overlaps nothing.
        open_now = slice(0, rank + 1)
        iou = _iou(fused_start[:, open_now], fused_end[:, open_now], first, last)
        nearest = iou.argmax(axis=1)
        joins = live & (iou[rows, nearest] > iou_thr)
        place = rows, np.where(joins, nearest, opened)
        start_sum[place] += score * first
        end_sum[place] += score * last
        total[place] += score
        members[place] += live
        # A single member keeps its ends to the last bit.
        weight = np.where(joins, total[place], 1)
        fused_start[place] = np.where(joins, start_sum[place] / weight, first * live)
        fused_end[place] = np.where(joins, end_sum[place] / weight, last * live)
        # The first member of a cluster is its best.
        best[place] = np.where(joins, best[place], score)
        opened += live & ~joins
    columns = (fused_start, fused_end, total, best, members)
    return _Clusters(*(torch.from_numpy(column).to(scores.device) for column in columns))


def _on_host(values: Tensor) -> Floats:
    """As an array: what is chosen one after another is small, and calls of NumPy cost less."""
    array: Floats = values.detach().cpu().numpy()
    return array


def _ceiling(settings: FusionSettings) -> float:
    """The highest score that fusion can give to spans of score 1."""
    weights = settings.weights
    return len(weights) * max(weights) / sum(weights) if settings.conf == "avg" else 1.0


def _decimals(logits: Tensor) -> Tensor:
    """Probabilities with four decimals; in float32 the product would round to false halves."""
    return (logits.float().sigmoid().double() * 1e4).round().div(1e4).float()


def _clipped(spans_cxw: Tensor) -> Tensor:
    return cxw_to_xx(spans_cxw).clamp(0.0, 1.0)


def _iou(start: Floats, end: Floats, first: Floats, last: Floats) -> Floats:
    """IoU of (B, K) spans with B spans, as in spans.py."""
    first, last = first[:, None], last[:, None]
    shared = np.maximum(np.minimum(end, last) - np.maximum(start, first), 0)
    union = (end - start) + (last - first) - shared
    iou: Floats = shared / np.maximum(union, EPS)
    return iou


def _log_sigmoid(logits: Tensor) -> Tensor:
    """Logarithm of the sigmoid, held above -inf, whose product with 0 is NaN."""
    return F.logsigmoid(logits.float()).clamp(min=torch.finfo(torch.float32).min)
