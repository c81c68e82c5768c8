"""Losses that bring clips and sentences together (SA-DETR; sa_detr.md, sections 2.2 and 2.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.highlight import relevance
from mrmodel.models.sa_detr_settings import CtmSettings

EPS = 1e-6  # least length of a vector that is normalised


@dataclass(frozen=True, slots=True)
class Relevance:
    """Which clips the sentences are about.

    Attributes:
        labels: (B, L), a clip is relevant above 0; 0 at padding.
        mask: (B, L) bool.
        clip: (B,) int64, one relevant clip of each sample, drawn by the loader.
        exists: (B,) bool, the sample has such a clip; others count in no loss.
    """

    labels: Tensor
    mask: Tensor
    clip: Tensor
    exists: Tensor


def drawn_clips(positive_clips: Tensor, labels: Tensor, mask: Tensor) -> Relevance:
    """Take the last clip of the margin pairs (B, P), which is drawn among the relevant ones."""
    labels = labels.masked_fill(~mask, 0.0)
    if not positive_clips.shape[1]:
        positive_clips = positive_clips.new_zeros(len(labels), 1)
    clip = positive_clips[:, -1]
    return Relevance(labels, mask, clip, labels.gather(1, clip[:, None]).squeeze(1) > 0.0)


def video_text_contrast(video: Tensor, text: Tensor, same: Tensor, tau: float) -> Tensor:
    """A video finds its sentence in the batch, and a sentence its video: mean of both entropies.

    Args:
        video: (B, d) vectors of the videos.
        text: (B, d) vectors of their sentences.
        same: (B, B) bool, see `same_sentence`; such pairs are no negatives.
        tau: temperature of the cosines.
    """
    logits = _cosines(video, text) / tau
    everyone = torch.ones_like(same[0])
    return 0.5 * (_own(logits, same, everyone) + _own(logits.T, same, everyone))


class ClipTextMatching:
    """``local``, ``intra`` and ``inter``: each relevant clip is nearer to its sentence than others.

    * ``local`` (TR-DETR): cross entropy of sigmoid(cosine / tau) and relevance, mean over the valid
      clips.
    * ``intra`` (UniVTG): the drawn clip against the clips of lower label of its video.
    * ``inter`` (UniVTG): the drawn clip against the sentences of the batch, and the sentence
      against the drawn clips, summed.

    All are 0 where no sample has a relevant clip.
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
        clips = clips.float().masked_fill(~truth.mask[..., None], 0.0)
        directions = F.normalize(sentence.float(), dim=-1, eps=EPS)
        scores = F.normalize(clips, dim=-1, eps=EPS) @ directions.unsqueeze(2)
        logits = scores.squeeze(2) / tau
        counted = truth.mask & exists[:, None]
        drawn = clips[torch.arange(len(clips), device=clips.device), truth.clip]
        pairs = _cosines(drawn, sentence) / tau
        clip_to_text = _own(pairs, same, exists)
        text_to_clip = _own(pairs.T, same | ~exists, exists)
        return {
            "local": relevance(logits.masked_fill(~counted, 0.0), truth.labels > 0.0, counted),
            "intra": self._within_videos(logits, truth),
            "inter": clip_to_text + text_to_clip,
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


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    """(B, d), (B, d) -> (B, B) float32."""
    first = F.normalize(first.float(), dim=-1, eps=EPS)
    return first @ F.normalize(second.float(), dim=-1, eps=EPS).T


def _own(logits: Tensor, hidden: Tensor, counts: Tensor) -> Tensor:
    """Cross entropy of row i with target column i, mean over the rows that count.

    Args:
        logits: (B, B).
        hidden: (B, B) bool, columns that are left out; a row's own column is not, if it counts.
        counts: (B,) bool.
    """
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(hidden & ~own, torch.finfo(logits.dtype).min)
    entropy = -logits.log_softmax(1).diagonal()
    return (entropy * counts).sum() / counts.sum().clamp(min=1)
