"""From text-conditioned clips to windows and clip scores.

The part of QD-DETR after its first stage, and of VideoLights after its first two.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mrmodel.models.layers.dab_decoder import DabDecoder
from mrmodel.models.layers.functional import key_mask, xavier_matrices
from mrmodel.models.layers.heads import DecoderHeads, SaliencyHead
from mrmodel.models.layers.token_encoder import LearnedToken, PositionedTensor, TokenEncoder
from mrmodel.models.settings import DetrSettings
from mrmodel.types import LayerOutput


class DetrOutput(NamedTuple):
    """Outputs of the decoder layers, clip scores (k B, L), encoded clips (B, L, d)."""

    layers: list[LayerOutput]
    saliency: Tensor
    memory: Tensor


class TokenDetr(nn.Module):
    """Encoder over [saliency token; clips], clip scores, DAB decoder over clips, heads."""

    def __init__(self, settings: DetrSettings) -> None:
        super().__init__()
        self.token = LearnedToken(settings.hidden)
        self.encoder = TokenEncoder(settings, settings.encoder_layers)
        self.decoder = DabDecoder(settings)
        self.anchors = nn.Parameter(torch.randn(settings.queries, 2))
        self.heads = DecoderHeads(settings)
        self.saliency_head = SaliencyHead(settings.hidden)

    def initialise(self, *before: nn.Module) -> None:
        """Initialise the encoder, the decoder, and the stages `before` them."""
        xavier_matrices(*before, self.encoder, self.decoder)

    def forward(self, video: Tensor, position: Tensor, mask: Tensor) -> DetrOutput:
        """Score the clips of all sequences, and decode windows from the first one of each sample.

        Args:
            video: (k B, L, d); with k = 2 the second half holds the negative pairs, which are not
                decoded.
            position: codes of the clips (B or 1, L, d).
            mask: (B, L) bool.
        """
        token, clips = self.encoder(self.token(), PositionedTensor(video, position), mask)
        saliency = self.saliency_head(clips, token).float()
        memory = clips[: len(mask)]
        states, references = self.decoder(self.anchors, memory, position, key_mask(mask))
        return DetrOutput(self.heads(states, references), saliency, memory)
