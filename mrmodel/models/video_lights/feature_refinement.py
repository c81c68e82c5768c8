"""Text-aware clip features before any attention (docs/models/video_lights.md, section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers.dropout import Dropout
from mrmodel.models.video_lights.settings import Correspondence

# The published log(mask + 1e-45) at padding, as a constant: that sum is a subnormal number, and
# processors that flush subnormals to zero would give minus infinity.
LEGACY_PADDED_SIMILARITY = -103.2789


LEAST_SQUARE = 1e-16  # lower bound of the squared denominator of a cosine


class FeatureRefinement(nn.Module):
    """relu(W [clip; similarity; sentence; correspondence]): text-aware clip features.

    * similarity: cosine of clip and sentence, times a learned vector;
    * sentence: the sum of the tokens, weighted by a learned pooling;
    * correspondence: a learned vector; ``words`` multiplies it with the mean of the tokens,
      weighted by their similarity to the clip. The published code weights the rows of a matrix
      that way, but all rows are equal, which reduces to ``constant``.

    Args:
        hidden: channels d.
        correspondence: as above.
        p: dropout of the four parts and of the result.
        legacy_padding: give padded clips their (large) published values.
    """

    def __init__(
        self, hidden: int, correspondence: Correspondence, p: float, legacy_padding: bool = False
    ) -> None:
        super().__init__()
        self.similarity = nn.Parameter(torch.empty(hidden, 1))
        self.correspondence = nn.Parameter(torch.empty(1, hidden))
        self.correspondence_scale = nn.Parameter(torch.empty(1, 1))
        self.pooling = nn.Parameter(torch.empty(hidden, 1))
        self.mixer = nn.Linear(4 * hidden, hidden)
        self.dropout = Dropout(p)
        self.of_words = correspondence == "words"
        self.legacy_padding = legacy_padding
        for parameter in (
            self.similarity, self.correspondence, self.correspondence_scale, self.pooling,
        ):  # fmt: skip
            nn.init.xavier_uniform_(parameter)

    def forward(self, video: Tensor, text: Tensor, video_mask: Tensor, text_mask: Tensor) -> Tensor:
        """Clips (B, L, d), tokens (B, N, d) and their masks (B, L), (B, N) -> (B, L, d)."""
        sentence = self._sentence(text, text_mask)
        similarity = clip_cosine(video, sentence).unsqueeze(-1)
        if self.legacy_padding:
            similarity = similarity + LEGACY_PADDED_SIMILARITY * ~video_mask.unsqueeze(-1)
        correspondence = self.correspondence_scale * self.correspondence
        if self.of_words:
            correspondence = correspondence * _fitting_words(video, text, text_mask)
        parts = (video, similarity, sentence, correspondence.to(video.dtype))
        mix = self._mix_dropped if self.training and self.dropout.p else self._mix
        mixed = mix(*parts)
        refined: Tensor = self.dropout(mixed.relu())
        return refined

    def _sentence(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """(B, 1, d)."""
        scores = (text @ self.pooling).float().masked_fill(~text_mask.unsqueeze(-1), -torch.inf)
        return scores.softmax(1).transpose(1, 2).to(text.dtype) @ text

    def _mix_dropped(
        self, video: Tensor, similarity: Tensor, sentence: Tensor, correspondence: Tensor
    ) -> Tensor:
        """The sum with dropout of single channels, which needs all four parts materialised."""
        parts = (video, similarity * self.similarity.T, sentence, correspondence)
        joined = torch.cat([part.expand_as(video) for part in parts], dim=-1)
        mixed: Tensor = self.mixer(self.dropout(joined))
        return mixed

    def _mix(
        self, video: Tensor, similarity: Tensor, sentence: Tensor, correspondence: Tensor
    ) -> Tensor:
        """The same sum, part by part: parts shared by the clips are computed once per sample."""
        of_video, of_similarity, of_sentence, of_rest = self.mixer.weight.chunk(4, dim=1)
        shared = F.linear(sentence, of_sentence) + F.linear(correspondence, of_rest)
        mixed = F.linear(video, of_video, self.mixer.bias) + shared
        return mixed + similarity * (of_similarity @ self.similarity).T


def clip_cosine(clips: Tensor, vector: Tensor) -> Tensor:
    """Cosine of (B, L, d) and (B, 1, d) -> (B, L), 0 for a clip of zeros.

    Divides the products by the norms; torch's function divides all channels of all clips first.
    """
    products = (clips @ vector.transpose(1, 2)).squeeze(-1)
    squares = clips.square().sum(-1) * vector.square().sum(-1)
    return products * squares.clamp(min=LEAST_SQUARE).rsqrt()


def _fitting_words(video: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
    """(B, L, d): for each clip the mean of the valid tokens, softmax of <token, clip> / sqrt(d)."""
    scores = (video @ text.transpose(1, 2)).float() * video.shape[-1] ** -0.5
    weights = scores.masked_fill(~text_mask.unsqueeze(1), -torch.inf).softmax(-1)
    words: Tensor = weights.to(text.dtype) @ text
    return words
