"""Detection losses of groups of queries, all decoder layers at once (sg_detr.md, section 5.3).

A group is judged against a `GroupTruth`: which true window each of its slots answers for, be it by
matching (`matched_truth`) or because the slot was made from that window (`known_truth`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.span import focal_loss, smooth_l1
from mrmodel.losses.windows import PaddedWindows, best_iou, own_windows
from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sg_detr.output import Heads
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.spans import aligned_iou_and_giou, cxw_to_xx


@dataclass(frozen=True, slots=True)
class GroupTruth:
    """What the S slots of a group must answer.

    Attributes:
        window: (K, B, S), or (1, B, S) for all layers alike, int64: index of the slot's true window
            within its sample, -1 for background.
        used: (B, S) bool; other slots are not judged.
        span_norm: what sums over windows are divided by, at least 1.
        known: the windows were given before decoding. Then background slots weigh as much as
            positive ones, and the IoU head is judged on positive slots with their own window.
    """

    window: Tensor
    used: Tensor
    span_norm: Tensor | float
    known: bool = False


def matched_truth(match: Tensor, windows: PaddedWindows, used: Tensor | None = None) -> GroupTruth:
    """Truth of matched queries: (K, B, Q) `match` of a `LayerwiseMatcher`, (B, Q) `used` or all.

    Sums over windows are divided by the number of windows of the batch, matched or not.
    """
    used = torch.ones_like(match[0], dtype=torch.bool) if used is None else used
    return GroupTruth(match, used, float(max(windows.total, 1)))


def known_truth(queries: LabelledQueries) -> GroupTruth:
    """Truth of denoising or auxiliary queries.

    Sums over windows are divided by the number of positive slots. Of denoising queries this is
    windows x groups, as each group has one positive slot a window.

    Their negatives are hard ones and hardly more than the positives, so they keep the weight 1 that
    DINO gives them: eos makes up for many easy background queries, which these groups do not have.
    """
    positive = queries.positive & queries.used
    window = queries.window.masked_fill(~positive, -1)[None]
    return GroupTruth(window, queries.used, positive.sum().clamp(min=1).float(), known=True)


def span_errors(
    predicted: Tensor, true: Tensor, beta: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """How far spans are from their windows.

    Args:
        predicted: (..., 2) cxw.
        true: (..., 2) cxw of their windows.
        beta: see `smooth_l1`.

    Returns:
        (...) each: smooth absolute error (mean of centre and width), 1 - gIoU, and the IoU, which
        has no gradient.
    """
    iou, giou = aligned_iou_and_giou(cxw_to_xx(predicted), cxw_to_xx(true))
    return smooth_l1(predicted, true, beta).mean(-1), 1.0 - giou, iou.detach()


@dataclass(frozen=True, slots=True)
class _Judged:
    """Heads against their truth, unused slots made harmless.

    Attributes:
        logits: (K, B, S).
        spans_cxw: (K, B, S, 2).
        positive, used: (K, B, S) and (1, B, S), 0 or 1.
        absolute, apart: (K, B, S) errors of the spans, see `span_errors`; anything finite at
            background.
        own_iou: (K, B, S) with the slot's own window, 0 at background, no gradient.
    """

    logits: Tensor
    spans_cxw: Tensor
    positive: Tensor
    used: Tensor
    absolute: Tensor
    apart: Tensor
    own_iou: Tensor


class DetectionLoss:
    """Class, span, gIoU and IoU-head losses of groups; settings of the section ``loss``."""

    def __init__(self, settings: SgDetrSettings) -> None:
        self.settings = settings.loss

    def __call__(
        self, heads: Heads, truth: GroupTruth, windows: PaddedWindows
    ) -> dict[str, Tensor]:
        """Unweighted losses of each layer, float32.

        Returns:
            ``cls``, ``l1``, ``giou`` and, with an IoU head, ``iou``: (K,) each. ``l1`` and ``giou``
            are 0 without positive slots, all are without used ones.
        """
        return self.of_groups([(heads, truth)], windows)[0]

    def of_groups(
        self, groups: Sequence[tuple[Heads, GroupTruth]], windows: PaddedWindows
    ) -> list[dict[str, Tensor]]:
        """The losses of each of several groups of queries of the same K layers."""
        judged = _judge(groups, windows, self.settings.smooth_l1_beta)
        return [
            self._losses(heads.iou_logits, of_group, truth, windows)
            for (heads, truth), of_group in zip(groups, judged, strict=True)
        ]

    def _losses(
        self, iou_logits: Tensor | None, judged: _Judged, truth: GroupTruth, windows: PaddedWindows
    ) -> dict[str, Tensor]:
        losses = {
            "cls": self._class_loss(judged, truth),
            "l1": (judged.positive * judged.absolute).sum((1, 2)) / truth.span_norm,
            "giou": (judged.positive * judged.apart).sum((1, 2)) / truth.span_norm,
        }
        if iou_logits is not None:
            losses["iou"] = self._iou_loss(iou_logits, judged, truth, windows)
        return losses

    def _class_loss(self, judged: _Judged, truth: GroupTruth) -> Tensor:
        """Mean over used slots or, with ``norm: gt``, sum over windows (``qfl``: its beta is 2)."""
        settings, logits = self.settings.cls, judged.logits
        target = judged.positive
        if settings.kind == "focal":
            loss = focal_loss(logits, target)
        elif settings.kind == "qfl":
            entropy = F.binary_cross_entropy_with_logits(logits, judged.own_iou, reduction="none")
            loss = entropy * (judged.own_iou - logits.sigmoid()).square()
        else:
            entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            background = 1.0 if truth.known else settings.eos
            loss = entropy * (background + (1.0 - background) * target)
        norm = truth.span_norm if settings.norm == "gt" else judged.used.sum().clamp(min=1)
        return (judged.used * loss).sum((1, 2)) / norm

    def _iou_loss(
        self, iou_logits: Tensor, judged: _Judged, truth: GroupTruth, windows: PaddedWindows
    ) -> Tensor:
        """Mean over the slots that are judged: all used ones, or the positive ones."""
        if truth.known or self.settings.iou_target == "matched":
            target, weight = judged.own_iou, judged.positive
        else:
            target, weight = best_iou(judged.spans_cxw, windows), judged.used
        logits = iou_logits.float().masked_fill(~truth.used, 0.0)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (weight * loss).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


def _judge(
    groups: Sequence[tuple[Heads, GroupTruth]], windows: PaddedWindows, beta: float
) -> list[_Judged]:
    """All groups are laid side by side for what is the same for every slot, then parted again."""
    heads, truths = zip(*groups, strict=True)
    layers = len(heads[0].logits)
    used = torch.cat([truth.used for truth in truths], dim=1)
    window = torch.cat([truth.window.expand(layers, -1, -1) for truth in truths], dim=2)
    logits = torch.cat([group.logits for group in heads], dim=2).float()
    spans = torch.cat([group.spans_cxw for group in heads], dim=2).float()
    # Filling before any arithmetic keeps whatever is in an unused slot out of the gradient too.
    unused = ~used
    logits, spans = logits.masked_fill(unused, 0.0), spans.masked_fill(unused[..., None], 0.5)
    window = window.masked_fill(unused, -1)
    positive = window >= 0
    absolute, apart, iou = span_errors(spans, own_windows(window, windows), beta)
    own_iou = torch.where(positive, iou, 0.0)
    columns = (logits, spans, positive.float(), used[None].float(), absolute, apart, own_iou)
    sizes = [group.logits.shape[2] for group in heads]
    parts = zip(*(torch.split(column, sizes, 2) for column in columns), strict=True)
    return [_Judged(*part) for part in parts]
