"""Moment and non-moment tokens, for training only (sg_detr.md, section 3.7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.models.layers.encoder import EncoderLayer
from mrmodel.models.sg_detr.output import Alignment
from mrmodel.models.sg_detr.settings import SgDetrSettings


class MomentEncoder(nn.Module):
    """An encoder layer over [token; clips] that keeps relevant and other clips apart.

    CG-DETR runs the layer twice, with the keys limited to the token and the relevant clips, then to
    the token and the other clips. Nothing but a clip's own run is read of it, so that one run does:
    the token stands in it twice, and every row reads its own kind only. The numbers are the same
    and the work is half.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(settings.hidden))
        self.token_position = nn.Parameter(torch.randn(settings.hidden))
        self.layer = EncoderLayer(settings, "prelu")
        self.split = settings.loss.align.bce_frames == "split"

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
            `Alignment`. A token without clips to read has read itself. The states of padded clips
            are finite and mean nothing; no other state depends on them.
        """
        token = self.token.to(clips.dtype).expand(len(clips), 2, -1)
        token_position = self.token_position.to(position.dtype).expand(len(position), 2, -1)
        states = self.layer(
            torch.cat((token, clips), dim=1),
            torch.cat((token_position, position), dim=1),
            _same_kind(relevant, mask),
        )
        moment, non_moment, encoded = states.split([1, 1, clips.shape[1]], dim=1)
        return Alignment(
            moment=moment.squeeze(1),
            non_moment=non_moment.squeeze(1),
            sentence=sentence,
            clips=encoded if self.split else clips,
        )


def _same_kind(relevant: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, L + 2, L + 2) bool: rows of [moment token; non-moment token; clips] read their kind.

    Rows of padded clips read one of the tokens at least, so that they stay finite.
    """
    tokens = (torch.arange(2, device=mask.device) == 0).expand(len(mask), 2)
    kind = torch.cat((tokens, relevant), dim=1)
    valid = torch.cat((torch.ones_like(tokens), mask), dim=1)
    return ((kind[:, :, None] == kind[:, None, :]) & valid[:, None, :])[:, None]
