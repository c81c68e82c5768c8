"""The criterion of Moment-DETR and of the models derived from it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mrmodel.losses.criterion import ClipLoss, DetrCriterion, LayerLoss
from mrmodel.losses.matching import HungarianMatcher
from mrmodel.losses.span import ContrastiveLoss, LabelLoss, SpanLoss
from mrmodel.models.settings import DetrSettings


def detr_criterion(
    settings: DetrSettings,
    clip_losses: Sequence[ClipLoss],
    span_loss: LayerLoss | None = None,
    growing: Collection[str] = (),
) -> DetrCriterion:
    """Span, gIoU and class losses of matched windows, optional alignment, and `clip_losses`.

    Args:
        settings: weights and switches; with `highlights_only` only the `clip_losses` are used.
        clip_losses: the model's losses on clip scores.
        span_loss: the loss on spans; None = `SpanLoss`.
        growing: see `DetrCriterion`.
    """
    layer_losses = [span_loss or SpanLoss(), LabelLoss(settings.background_weight)]
    if settings.contrastive:
        layer_losses.append(ContrastiveLoss(settings.contrastive_temperature))
    matcher = HungarianMatcher(**settings.matcher.model_dump())
    return DetrCriterion(
        layer_losses=layer_losses,
        clip_losses=clip_losses,
        weights=settings.loss.model_dump(),
        matcher=None if settings.highlights_only else matcher,
        growing=growing,
    )
