"""Losses of video-text alignment (SA-DETR; docs/models/sa_detr.md, sections 2.2 and 2.5).

And of the predicted span quality (eqs 8, 9; BAM-DETR).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.highlight import relevance
from mrmodel.losses.windows import PaddedWindows, best_iou
from mrmodel.models.sa_detr.settings import CtmSettings, QualitySettings
from mrmodel.models.sa_detr.span_refiner import RefinedQueries

EPS = 1e-6  # lower bound of the norm in normalisation


@dataclass(frozen=True, slots=True)
class Relevance:
    """Clips that are relevant to the sentences.

    Attributes:
        labels: (B, L), a clip is relevant above 0; 0 at padding.
        mask: (B, L) bool.
        clip: (B,) int64, one relevant clip per sample, drawn by the loader.
        exists: (B,) bool, the sample has such a clip; other samples are excluded from the losses.
    """

    labels: Tensor
    mask: Tensor
    clip: Tensor
    exists: Tensor


def drawn_clips(positive_clips: Tensor, labels: Tensor, mask: Tensor) -> Relevance:
    """Take the positive clip of the last margin pair (B, P), drawn among the relevant clips."""
    labels = labels.masked_fill(~mask, 0.0)
    if not positive_clips.shape[1]:
        positive_clips = positive_clips.new_zeros(len(labels), 1)
    clip = positive_clips[:, -1]
    return Relevance(labels, mask, clip, labels.gather(1, clip[:, None]).squeeze(1) > 0.0)


def video_text_contrast(video: Tensor, text: Tensor, same: Tensor, tau: float) -> Tensor:
    """Mean of the video-to-text and text-to-video cross entropies over the batch.

    Args:
        video: (B, d) vectors of the videos.
        text: (B, d) vectors of their sentences.
        same: (B, B) bool, see `same_sentence`; such pairs are not used as negatives.
        tau: temperature of the cosines.
    """
    logits = _both_ways(_directions(video) @ _directions(text).T) / tau
    return _own(logits, same, torch.ones_like(same[0])).mean()


class ClipTextMatching:
    """Clip-text contrast in three terms: ``local``, ``intra`` and ``inter``.

    * ``local`` (TR-DETR): cross entropy of sigmoid(cosine / tau) and relevance, mean over valid
      clips.
    * ``intra`` (UniVTG): the drawn clip against the clips of its video with a lower label.
    * ``inter`` (UniVTG): the drawn clip against the sentences of the batch, plus the sentence
      against the drawn clips.

    All are 0 if no sample has a relevant clip.
    """

    def __init__(self, settings: CtmSettings) -> None:
        self.settings = settings

    def __call__(
        self, clips: Tensor, sentence: Tensor, truth: Relevance, same: Tensor
    ) -> dict[str, Tensor]:
        """Unweighted float32 scalars by name.

        Args:
            clips: (B, L, d).
            sentence: (B, d).
            truth: which clips are relevant.
            same: (B, B) bool, see `same_sentence`.
        """
        tau, exists = self.settings.tau, truth.exists
        clips = _directions(clips.float().masked_fill(~truth.mask[..., None], 0.0))
        sentence = _directions(sentence)
        logits = (clips @ sentence.unsqueeze(2)).squeeze(2) / tau
        counted = truth.mask & exists[:, None]
        drawn = clips[torch.arange(len(clips), device=clips.device), truth.clip]
        pairs = _both_ways(drawn @ sentence.T) / tau
        # Candidates of a sentence are the drawn clips; candidates of a clip are all sentences.
        hidden = torch.stack((same, same | ~exists))
        return {
            "local": relevance(logits.masked_fill(~counted, 0.0), truth.labels > 0.0, counted),
            "intra": self._within_videos(logits, truth),
            "inter": _own(pairs, hidden, exists).sum(),
        }

    def _within_videos(self, logits: Tensor, truth: Relevance) -> Tensor:
        """Mean over samples of -log softmax of the drawn clip."""
        clip = truth.clip[:, None]
        own = torch.zeros_like(truth.mask).scatter(1, clip, True)
        lower = truth.labels < truth.labels.gather(1, clip)
        logits = logits.masked_fill(~(lower & truth.mask | own), torch.finfo(logits.dtype).min)
        loss = -logits.log_softmax(1).gather(1, clip).squeeze(1)
        if self.settings.legacy_intra_transposed:
            across = logits.log_softmax(0).gather(1, clip).squeeze(1)
            loss = loss - across
        return (loss * truth.exists).sum() / truth.exists.sum().clamp(min=1)


def _directions(rows: Tensor) -> Tensor:
    """(..., d) -> (..., d) float32 unit vectors."""
    return F.normalize(rows.float(), dim=-1, eps=EPS)


def _both_ways(logits: Tensor) -> Tensor:
    """(B, B) -> (2, B, B): the logits and their transpose."""
    return torch.stack((logits, logits.T))


def _own(logits: Tensor, hidden: Tensor, counts: Tensor) -> Tensor:
    """Cross entropy of row i with target column i, mean over the rows in `counts`: (2,).

    Args:
        logits: (2, B, B).
        hidden: (2, B, B) or (B, B) bool, excluded columns; never the own column of a row in
            `counts`.
        counts: (B,) bool.
    """
    own = torch.eye(len(counts), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(hidden & ~own, torch.finfo(logits.dtype).min)
    entropy = -logits.log_softmax(2).diagonal(dim1=1, dim2=2)
    return (entropy * counts).sum(1) / counts.sum().clamp(min=1)


# With `bins`, IoUs above the first, between the two, and up to the second have equal weight.
BIN_EDGES = (0.7, 0.3)


def quality_loss(
    found: RefinedQueries,
    windows: PaddedWindows,
    matched: Tensor,
    used: Tensor,
    settings: QualitySettings,
) -> Tensor:
    """|q - IoU with the best true window|, weighted; the span gets no gradient.

    Args:
        found: K layers of S queries.
        windows: the true windows; the target of a sample without any is 0.
        matched: (K or 1, B, S) bool, queries with weight `w_matched`.
        used: (B, S) bool, the queries with a loss.
        settings: ``matched``: the weighted mean over used queries (or their sum, mean over
            samples); ``bins``: the mean over three ranges of IoU of the mean within each, 0 for an
            empty range.

    Returns:
        (K,).
    """
    target = best_iou(found.spans_cxw, windows)
    error = (found.quality_logits.sigmoid() - target).abs()
    if settings.weighting == "bins":
        high, low = BIN_EDGES
        bins = (target > high, (target <= high) & (target > low), target <= low)
        means = [_mean(error, (part & used).float()) for part in bins]
        return (means[0] + means[1] + means[2]) / len(bins)
    weight = 1.0 + (settings.w_matched - 1.0) * matched.float()
    total = (error * weight * used).sum((1, 2))
    return total / (used.sum().clamp(min=1) if settings.norm == "mean" else max(len(used), 1))


def quality_margin(quality: Tensor, used: Tensor, margin: float) -> Tensor:
    """relu(q_far - q_near + margin) summed over the pairs of copies of one window in one group.

    Args:
        quality: (K, B, groups, 2, Gmax), the near copies first.
        used: of the same shape without K, bool.
        margin: required lead of the near copy.

    Returns:
        (K,).
    """
    near, far = quality.unbind(3)
    return ((far - near + margin).relu() * used[:, :, 0]).sum((1, 2, 3))


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """(K, B, S) -> (K,) weighted mean of each layer, 0 if all weights are 0."""
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1.0)
