"""Losses of clip scores (SG-DETR eq. 11; sg_detr.md, section 5.2)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.config.base import NonNegative, Positive, Section
from mrmodel.types import Targets

HIGHEST_THRESHOLD = 11
TWELVE = 12.0  # the published divisor of the eleven thresholds


class ClipScoreSettings(Section):
    """Losses of clip scores (sg_detr.md, section 5.2)."""

    margin: NonNegative = 0.2
    tau: Positive = 0.5
    rctl_norm: Literal["twelve", "active"] = "twelve"
    neg_reduction: Literal["sum", "mean"] = "sum"


class HighlightLoss:
    """``margin``, ``rctl``, ``bce_pos`` and ``bce_neg`` of clip scores.

    A sample without relevant clip, or without negative sentence, adds nothing to the terms that
    need one. Padded clips are never read.
    """

    def __init__(self, settings: ClipScoreSettings) -> None:
        self.settings = settings

    def __call__(
        self,
        scores: Tensor,
        negative: Tensor,
        has_negative: Tensor,
        targets: Targets,
        mask: Tensor,
    ) -> dict[str, Tensor]:
        """Unweighted float32 losses by name: scalars or, of K kinds of scores at once, (K,) each.

        Args:
            scores: (B, L) or (K, B, L) logits of the clips under their sentence.
            negative: likewise of the same clips under a sentence of another video.
            has_negative: (B,) bool, rows of `negative` that exist.
            targets: the clip pairs and the labels, 0..12, are read.
            mask: (B, L) bool.
        """
        s = self.settings
        judged = mask & has_negative[:, None]
        scores = scores.float().masked_fill(~mask, 0.0)
        negative = negative.float().masked_fill(~judged, 0.0)
        labels = targets.saliency_labels.masked_fill(~mask, 0.0)
        shares, thresholds = threshold_shares(labels)
        divisor = thresholds.clamp(min=1) if s.rctl_norm == "active" else TWELVE
        ranked = torch.cat((scores, negative), dim=-1) / s.tau
        ranked = rank_contrastive(ranked, torch.cat((mask, judged), dim=1), shares)
        wrong = F.softplus(negative) * judged
        divisor_neg = has_negative.sum() if s.neg_reduction == "sum" else judged.sum()
        return {
            "margin": margin(scores, targets, s.margin),
            "rctl": ranked / divisor,
            "bce_pos": relevance(scores, labels > 0.0, mask),
            "bce_neg": wrong.sum((-2, -1)) / divisor_neg.clamp(min=1),
        }


def margin(scores: Tensor, targets: Targets, lead: float) -> Tensor:
    """2 / (B P) times the sum over pairs of max(0, lead + s_neg - s_pos).

    A pair of one clip with itself stands for "no such pair" and counts as 0, and so does a first
    clip that is not relevant: all raters may have given 0. Scores are (..., B, L).
    """
    pos, neg = targets.saliency_pos, targets.saliency_neg
    counts = (pos != neg) & (targets.saliency_labels.gather(1, pos) > 0.0)
    every = (*scores.shape[:-1], -1)
    lag = scores.gather(-1, neg.expand(every)) - scores.gather(-1, pos.expand(every))
    short = (lead + lag).relu()
    return 2.0 * (short * counts).sum((-2, -1)) / max(pos.numel(), 1)


def threshold_shares(labels: Tensor) -> tuple[Tensor, Tensor]:
    """What part each clip has in the rank loss.

    Threshold r = 1..11 asks for the mean over the clips with label >= r, then for the mean over the
    samples; all of them weigh log-probabilities of the same softmax, so their weights add up.

    Args:
        labels: (B, L), 0 at padding.

    Returns:
        (B, L) weights, and how many thresholds have a positive clip somewhere in the batch.
    """
    thresholds = torch.arange(1.0, HIGHEST_THRESHOLD + 1.0, device=labels.device)
    positive = labels >= thresholds[:, None, None]
    count = positive.sum(-1, keepdim=True)
    shares = (positive / count.clamp(min=1)).sum(0) / len(labels)
    return shares, (count > 0).flatten(1).any(1).sum()


def rank_contrastive(logits: Tensor, allowed: Tensor, shares: Tensor) -> Tensor:
    """Minus the sum over clips of share * log softmax of the logits (TR-DETR's and CG-DETR's loss).

    Args:
        logits: (..., B, 2L) float32, scores over temperature: the clips, then they again under the
            negative sentence.
        allowed: (B, 2L) bool, what the softmax runs over.
        shares: (B, L), 0 at padding.
    """
    logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
    log_probability = logits.log_softmax(-1)[..., : shares.shape[1]]
    return -(log_probability * shares).sum((-2, -1))


def relevance(scores: Tensor, relevant: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of sigmoid(scores) and `relevant`, mean over all valid clips of the batch.

    Scores are (..., B, L).
    """
    target = relevant.to(scores.dtype).expand_as(scores)
    entropy = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    return (entropy * mask).sum((-2, -1)) / mask.sum().clamp(min=1)
