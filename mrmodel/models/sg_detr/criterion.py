"""All losses of SG-DETR by name, and their weights (docs/models/sg_detr.md, section 6).

A name is ``<group>/.../<term>``: ``saliency/local/margin``, ``decoder/l2/giou``,
``selector/label``, ``auxiliary/l1/span``, ``anchors/centerness``, ``alignment/moment``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mrmodel.losses.criterion import Criterion
from mrmodel.losses.highlight import (
    TWELVE,
    rank_contrastive,
    relevance,
    threshold_shares,
)
from mrmodel.models.sg_detr.losses import (
    alignment_losses,
    anchor_losses,
    auxiliary_losses,
    match_heads,
    matched_losses,
)
from mrmodel.models.sg_detr.output import Heads, SgDetrOutput, TrainingParts
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.types import Batch, ModelOutput, Targets

RANK_TEMPERATURE = 0.5
LEAST_PROBABILITY = 1e-7


class SgDetrCriterion(Criterion):
    """Losses of clip scores, queries, anchors and alignment; absent parts are left out.

    The sum over decoder layers is plain.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        self.settings = settings
        self._weights = _weights(settings)

    def __call__(self, output: ModelOutput, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses by name, float32 scalars; `output` must come from training mode."""
        if not isinstance(output, SgDetrOutput) or output.training is None:
            raise TypeError("the losses of SG-DETR need the output of SG-DETR in training mode")
        parts, s = output.training, self.settings
        losses = self.saliency(parts, targets)
        if parts.moments is not None:
            losses |= self.detection(parts.moments, parts)
        if parts.alignment is not None:
            found = alignment_losses(parts.alignment, parts.labels, parts.mask, s.legacy_padding)
            losses |= {f"alignment/{term}": value for term, value in found.items()}
        return losses

    def weight(self, name: str, epoch: int = 0) -> float:
        """Weight of a loss by its name."""
        return self._weights[name.partition("/")[0], name.rpartition("/")[2]]

    def saliency(self, parts: TrainingParts, targets: Targets) -> dict[str, Tensor]:
        """Every term on the local and on the global scores (eq. 11); see `saliency_losses`."""
        kinds = ("local", "global") if self.settings.global_saliency else ("local",)
        scores = torch.stack((parts.local, parts.saliency)[: len(kinds)])
        negative = torch.stack((parts.negative_local, parts.negative_global)[: len(kinds)])
        found = saliency_losses(scores, negative, parts, targets, self.settings)
        return {
            f"saliency/{kind}/{term}": value
            for term, values in found.items()
            for kind, value in zip(kinds, values.unbind(), strict=True)
        }

    def detection(self, moments: Heads, parts: TrainingParts) -> dict[str, Tensor]:
        """Losses of decoder, selector, auxiliary queries and anchors."""
        weights, background = self.settings.match, self.settings.loss.background_weight
        host, windows = parts.host, parts.host.truth
        # Decoder layers and selector have equally many queries: one call matches all of them.
        heads = moments if parts.selector is None else moments.followed_by(parts.selector)
        matched = match_heads(heads, windows, weights)
        layers = len(moments.logits)
        found = matched_losses(moments, matched[:layers], windows, background)
        losses = _by_layer("decoder", found)
        if parts.selector is not None:
            found = matched_losses(parts.selector, matched[layers:], windows, background)
            losses |= {f"selector/{term}": value[0] for term, value in found.items()}
        if parts.auxiliary is not None and parts.auxiliary_queries is not None:
            found = auxiliary_losses(parts.auxiliary, parts.auxiliary_queries, parts.anchor_truth)
            losses |= _by_layer("auxiliary", found)
        if parts.anchors is not None:
            found = anchor_losses(parts.anchors, host.anchors, host.anchor_spans)
            losses |= {f"anchors/{term}": value for term, value in found.items()}
        return losses


def saliency_losses(
    scores: Tensor,
    negative: Tensor,
    parts: TrainingParts,
    targets: Targets,
    settings: SgDetrSettings,
) -> dict[str, Tensor]:
    """Losses of K kinds of clip scores (eq. 11, published values).

    * ``margin``: of the probabilities of two pairs of a relevant and another clip.
    * ``rank``: clips rated at least r = 1 .. 11 against all clips of a sample and the same clips
      under its negative sentence. Samples without a negative sentence run over their own clips, and
      their mean is added.
    * ``relevance``: cross entropy with the label, held to 1, mean over valid clips.
    * ``negative``: -log(1 - p) under the negative sentence, mean over valid clips.

    Args:
        scores: (K, B, L).
        negative: (K, B, L) of the negative sentences.
        parts: `mask`, `labels`, and which samples have a negative sentence.
        targets: clip pairs.
        settings: margin and legacy switches.

    Returns:
        (K,) each.
    """
    mask, has_negative = parts.mask, parts.host.has_negative
    judged = mask & has_negative[:, None]
    scores = scores.float().masked_fill(~mask, 0.0)
    negative = negative.float().masked_fill(~judged, 0.0)
    labels = parts.labels.masked_fill(~mask, 0.0)
    wrong = -(1.0 - negative.sigmoid()).clamp(min=LEAST_PROBABILITY).log()
    ranked = torch.cat((scores, negative), dim=-1) / RANK_TEMPERATURE
    shares = _rank_shares(labels, has_negative, settings.legacy_rank_axis)
    return {
        "margin": _margin(scores.sigmoid(), targets, settings.loss.margin),
        "rank": rank_contrastive(ranked, torch.cat((mask, judged), dim=1), shares) / TWELVE,
        "relevance": relevance(scores, labels.clamp(max=1.0), mask),
        "negative": (wrong * judged).sum((-2, -1)) / judged.sum().clamp(min=1),
    }


def _margin(probability: Tensor, targets: Targets, lead: float) -> Tensor:
    """2 / (B P) times the sum over pairs of max(0, lead + p_other - p_relevant); (K, B, L)."""
    kinds = (len(probability), -1, -1)
    lag = probability.gather(2, targets.saliency_neg.expand(kinds))
    lag = lag - probability.gather(2, targets.saliency_pos.expand(kinds))
    return 2.0 * (lead + lag).relu().sum((1, 2)) / max(targets.saliency_pos.numel(), 1)


def _rank_shares(labels: Tensor, has_negative: Tensor, legacy_axis: bool) -> Tensor:
    """Weight of each clip in the rank loss: a mean over samples with, and one over those without.

    In the published code a single sample without negative sentence is normalised over the batch
    axis, so that its term is 0.
    """
    shares = threshold_shares(labels)[0] * len(labels)
    without = (~has_negative).sum()
    own = 1.0 / without.clamp(min=1)
    if legacy_axis:
        own = own * (without != 1)
    factor = torch.where(has_negative, 1.0 / has_negative.sum().clamp(min=1), own)
    return shares * factor[:, None]


def _by_layer(group: str, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(K,) losses by name."""
    return {
        f"{group}/l{layer}/{term}": value
        for term, values in terms.items()
        for layer, value in enumerate(values.unbind())
    }


def _weights(settings: SgDetrSettings) -> dict[tuple[str, str], float]:
    """Weight of each (group, term)."""
    w = settings.loss.weights
    terms = {"span": w.span, "giou": w.giou, "label": w.label, "iou": w.iou}
    groups = {"decoder": 1.0, "selector": w.selector, "auxiliary": w.auxiliary}
    weights = {(g, t): a * b for g, a in groups.items() for t, b in terms.items()}
    anchors = {
        "label": w.anchor_label,
        "span": w.anchor_span,
        "giou": w.anchor_giou,
        "centerness": w.anchor_centerness,
    }
    weights |= {("anchors", term): weight for term, weight in anchors.items()}
    saliency = ("margin", "rank", "relevance", "negative")
    weights |= {("saliency", term): w.saliency for term in saliency}
    return weights | {("alignment", "alignment"): w.alignment, ("alignment", "moment"): w.moment}
