"""Losses of clip scores (SG-DETR eq. 11), as SA-DETR has them, and the terms of SG-DETR's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.settings import ClipScoreSettings
from mrmodel.types import Targets

HIGHEST_THRESHOLD = 11
TWELVE = 12.0  # the published divisor of the eleven thresholds


class HighlightLoss:
    """``margin``, ``rctl`` and ``bce_neg`` of clip scores.

    A sample without a relevant clip, or without a negative sentence, contributes nothing to the
    terms that need one. Padded clips are ignored.
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
        """Unweighted float32 scalars by name.

        Args:
            scores: (B, L) logits of the clips under their sentence.
            negative: logits of the same clips under a sentence of another video.
            has_negative: (B,) bool, the samples for which `negative` is valid.
            targets: its clip pairs and labels (0..12) are used.
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
            "bce_neg": wrong.sum((-2, -1)) / divisor_neg.clamp(min=1),
        }


def margin(scores: Tensor, targets: Targets, lead: float) -> Tensor:
    """2 / (B P) times the sum over pairs of max(0, lead + s_neg - s_pos).

    A pair of one clip with itself stands for "no pair" and contributes 0, and so does a pair whose
    first clip is not relevant (all raters gave 0). Scores are (..., B, L).
    """
    pos, neg = targets.saliency_pos, targets.saliency_neg
    counts = (pos != neg) & (targets.saliency_labels.gather(1, pos) > 0.0)
    every = (*scores.shape[:-1], -1)
    lag = scores.gather(-1, neg.expand(every)) - scores.gather(-1, pos.expand(every))
    short = (lead + lag).relu()
    return 2.0 * (short * counts).sum((-2, -1)) / max(pos.numel(), 1)


def threshold_shares(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weight of each clip in the rank loss.

    Each threshold r = 1..11 takes the mean over the clips with label >= r, then over the samples;
    all use log-probabilities of the same softmax, so their weights add up.

    Args:
        labels: (B, L), 0 at padding.

    Returns:
        (B, L) weights, and the number of thresholds with a positive clip in the batch.
    """
    thresholds = torch.arange(1.0, HIGHEST_THRESHOLD + 1.0, device=labels.device)
    positive = labels >= thresholds[:, None, None]
    count = positive.sum(-1, keepdim=True)
    shares = (positive / count.clamp(min=1)).sum(0) / len(labels)
    return shares, (count > 0).flatten(1).any(1).sum()


def rank_contrastive(logits: Tensor, allowed: Tensor, shares: Tensor) -> Tensor:
    """Minus the sum over clips of share * log softmax of the logits (as in TR-DETR and CG-DETR).

    Args:
        logits: (..., B, 2L) float32, scores / temperature: the clips, then the same clips under the
            negative sentence.
        allowed: (B, 2L) bool, the entries that the softmax runs over.
        shares: (B, L), 0 at padding.
    """
    logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
    log_probability = logits.log_softmax(-1)[..., : shares.shape[1]]
    return -(log_probability * shares).sum((-2, -1))


def relevance(scores: Tensor, relevant: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy of the scores and `relevant`, mean over all valid clips of the batch.

    `relevant` (B, L) is a bool, or a number in [0, 1].

    Scores are (..., B, L).
    """
    target = relevant.to(scores.dtype).expand_as(scores)
    entropy = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    return (entropy * mask).sum((-2, -1)) / mask.sum().clamp(min=1)
