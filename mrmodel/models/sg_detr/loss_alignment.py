"""Losses that align the moment with its sentence (eq. 14; sg_detr.md, section 5.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.negatives import number_names, same_sentence
from mrmodel.models.layers.functional import full_precision
from mrmodel.models.sg_detr.output import Alignment
from mrmodel.models.sg_detr.settings import AlignSettings

EPS = 1e-6  # least length of a vector that is normalised


class AlignmentLoss:
    """``aux/align``: a moment finds its sentence; ``aux/bce``: and its clips.

    A sample without relevant clip has no moment, and counts in neither.
    """

    def __init__(self, settings: AlignSettings) -> None:
        self.settings = settings

    def __call__(
        self, alignment: Alignment, labels: Tensor, mask: Tensor, text_keys: Sequence[str]
    ) -> dict[str, Tensor]:
        """Unweighted float32 scalars by name, 0 where no sample has a relevant clip.

        Args:
            alignment: tokens and clips of the moment encoder.
            labels: (B, L), a clip is relevant above 0.
            mask: (B, L) bool.
            text_keys: B keys of the sentences; equal sentences have equal keys.
        """
        relevant = (labels > 0.0) & mask
        names = torch.from_numpy(number_names(text_keys)).to(mask.device, non_blocking=True)
        with full_precision(mask.device):
            logits = sentence_logits(alignment) / self.settings.tau
            logits = without_false_negatives(logits, names, (mask & ~relevant).any(1))
            return {
                "aux/align": own_sentence(logits, relevant.any(1)),
                "aux/bce": self._own_clips(alignment, relevant, mask),
            }

    def _own_clips(self, alignment: Alignment, relevant: Tensor, mask: Tensor) -> Tensor:
        """Cross entropy of sigmoid(g m_i . z_ij) and `relevant`, mean over the valid clips."""
        moment, clips = alignment.moment.float(), alignment.clips.float()
        scale = moment.shape[1] ** -0.5 if self.settings.bce_scale else 1.0
        counted = mask & relevant.any(1, keepdim=True)
        logits = (clips @ moment[:, :, None]).squeeze(2) * scale
        logits = logits.masked_fill(~counted, 0.0)
        entropy = F.binary_cross_entropy_with_logits(logits, relevant.float(), reduction="none")
        return (entropy * counted).sum() / counted.sum().clamp(min=1)


def sentence_logits(alignment: Alignment) -> Tensor:
    """(B, 2, B) cosines: row i has m_i with every sentence, then n_i with every sentence."""
    tokens = torch.stack((alignment.moment.float(), alignment.non_moment.float()), dim=1)
    sentence = F.normalize(alignment.sentence.float(), dim=-1, eps=EPS)
    return F.normalize(tokens, dim=-1, eps=EPS) @ sentence.T


def without_false_negatives(logits: Tensor, names: Tensor, has_others: Tensor) -> Tensor:
    """The (B, 2, B) logits, the lowest number where an entry is no negative of its row.

    Those are, in both halves, another sample with the same sentence; and n_i of a sample whose
    clips are all relevant, since it read nothing.

    Args:
        logits: see `sentence_logits`.
        names: (B,) numbers of the sentences.
        has_others: (B,) bool, the sample has clips that are not relevant.
    """
    hidden = same_sentence(names)[:, None].repeat(1, 2, 1)
    hidden[:, 1] |= ~has_others[:, None]
    return logits.masked_fill(hidden, torch.finfo(logits.dtype).min)


def own_sentence(logits: Tensor, has_moment: Tensor) -> Tensor:
    """Cross entropy of row i with target m_i . s_i, mean over the samples that have a moment.

    Args:
        logits: (B, 2, B), see `sentence_logits`.
        has_moment: (B,) bool.
    """
    entropy = -logits.flatten(1).log_softmax(1).diagonal()
    return (entropy * has_moment).sum() / has_moment.sum().clamp(min=1)
