"""Tokens of the moment and of the sentence, for the alignment losses in training (eq. 14)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.models.layers.attention import Inputs
from mrmodel.models.layers.encoder import EncoderLayer
from mrmodel.models.layers.feed_forward import xavier_feed_forward
from mrmodel.models.layers.functional import key_mask, xavier_matrices
from mrmodel.models.sg_detr.output import Alignment
from mrmodel.models.sg_detr.settings import SgDetrSettings


class _TokenLayer(nn.Module):
    """A learned token with its position, and an encoder layer."""

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, settings.hidden))
        self.token_position = nn.Parameter(torch.randn(1, settings.hidden))
        self.layer = EncoderLayer(settings, "prelu")
        xavier_matrices(self.layer)
        xavier_feed_forward(self.layer)


class SentenceEncoder(_TokenLayer):
    """An encoder layer over [learned token; words]; its first row is the sentence."""

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Words (B, N, d), mask (B, N) -> (B, d)."""
        token = self.token.to(words.dtype).expand(len(words), 1, -1)
        sequence = torch.cat((token, words), dim=1)
        located = torch.cat((token + self.token_position.to(words.dtype), words), dim=1)
        allowed = key_mask(torch.cat((torch.ones_like(mask[:, :1]), mask), dim=1))
        # No other row is read, so no other row is computed.
        layer = self.layer
        state = layer.attention(
            Inputs(located[:, :1], located, sequence), allowed, token, layer.norm1
        )
        sentence: Tensor = layer.ffn(state, state, layer.norm2).squeeze(1)
        return sentence


class MomentEncoder(_TokenLayer):
    """An encoder layer over [token; clips] that keeps relevant and other clips apart.

    The published code runs the layer twice, with the keys limited to the token and the relevant
    clips, then to the token and the other clips, and reads of each run the states of its own clips.
    Here one run holds the token twice, and every row reads its own kind only. The numbers are the
    same and the work is half.
    """

    def forward(
        self, clips: Tensor, position: Tensor, sentence: Tensor, relevant: Tensor, mask: Tensor
    ) -> Alignment:
        """Tokens that read the relevant, and the other clips.

        Args:
            clips: (B, L, d) before they read any text.
            position: (B or 1, L, d).
            sentence: (B, d), handed on.
            relevant: (B, L) bool; not read at padding.
            mask: (B, L) bool.

        Returns:
            `Alignment`. A token without clips to read has read itself.
        """
        token = self.token.to(clips.dtype).expand(len(clips), 2, -1)
        token_position = self.token_position.to(position.dtype).expand(len(position), 2, -1)
        states = self.layer(
            torch.cat((token, clips), dim=1),
            torch.cat((token_position, position), dim=1),
            _same_kind(relevant, mask),
        )
        moment, non_moment, encoded = states.split([1, 1, clips.shape[1]], dim=1)
        encoded = encoded.masked_fill(~mask.unsqueeze(2), 0.0)
        return Alignment(moment.squeeze(1), non_moment.squeeze(1), encoded, sentence)


def _same_kind(relevant: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, L + 2, L + 2) bool: rows of [moment token; non-moment token; clips] read their kind.

    Rows of padded clips read one of the tokens at least, so that they stay finite.
    """
    tokens = (torch.arange(2, device=mask.device) == 0).expand(len(mask), 2)
    kind = torch.cat((tokens, relevant), dim=1)
    valid = torch.cat((torch.ones_like(tokens), mask), dim=1)
    return ((kind[:, :, None] == kind[:, None, :]) & valid[:, None, :])[:, None]
