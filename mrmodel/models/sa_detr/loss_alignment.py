"""Video-text alignment losses (SA-DETR; docs/models/sa_detr.md, sections 2.2 and 2.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.highlight import relevance
from mrmodel.models.sa_detr.settings import CtmSettings

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
