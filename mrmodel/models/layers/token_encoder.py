"""Self-attention over [token; clips] (QD-DETR), and the DETR of two models that builds on it.

The token summarises the clips.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mrmodel.models.layers.dab_decoder import DabDecoder
from mrmodel.models.layers.encoder import EncoderLayer
from mrmodel.models.layers.functional import Stack, key_mask, xavier_matrices
from mrmodel.models.layers.heads import DecoderHeads, SaliencyHead
from mrmodel.models.layers.position import repeat_positions
from mrmodel.models.settings import DetrSettings, LayerSettings
from mrmodel.types import LayerOutput


class PositionedTensor(NamedTuple):
    """States and their position codes, (..., d) each; the codes are repeated over the batch."""

    state: Tensor
    position: Tensor


class LearnedToken(nn.Module):
    """A learned token, shared by all samples, and its position code."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.state = nn.Parameter(torch.randn(hidden))
        self.position = nn.Parameter(torch.randn(hidden))

    def forward(self) -> PositionedTensor:
        """(d,) and (d,)."""
        return PositionedTensor(self.state, self.position)


class TokenEncoder(nn.Module):
    """PReLU encoder layers over a token (always valid) and the clips of a sample."""

    def __init__(self, settings: LayerSettings, layers: int) -> None:
        super().__init__()
        self.layers: Stack[EncoderLayer] = Stack(
            EncoderLayer(settings, "prelu") for _ in range(layers)
        )

    def forward(
        self, token: PositionedTensor, clips: PositionedTensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode k sequences per sample of the batch, for example also its negative pair.

        Args:
            token: state (d,) or (k B, d); position (d,), zeros where the token has none.
            clips: states (k B, L, d), positions (B or 1, L, d).
            mask: (B, L) bool.

        Returns:
            The token (k B, d) and the clips (k B, L, d).
        """
        size, length, hidden = clips.state.shape
        first = token.state.to(clips.state.dtype).expand(size, hidden).unsqueeze(1)
        sequence = torch.cat((first, clips.state), dim=1)
        code = token.position.expand(len(clips.position), 1, -1)
        position = torch.cat((code, clips.position), dim=1)
        valid = torch.cat((torch.ones_like(mask[:, :1]), mask), dim=1)
        mixed = self.encode(PositionedTensor(sequence, position), valid)
        first, encoded = torch.split(mixed, [1, length], dim=1)
        return first.squeeze(1), encoded

    def encode(self, sequence: PositionedTensor, mask: Tensor) -> Tensor:
        """[token; clips] as one sequence.

        Args:
            sequence: states (k B, 1 + L, d), positions (B or 1, 1 + L, d).
            mask: (B, 1 + L) bool.

        Returns:
            (k B, 1 + L, d).
        """
        size = len(sequence.state)
        position = repeat_positions(sequence.position, size)
        allowed = key_mask(mask.repeat(size // len(mask), 1))
        state = sequence.state
        for layer in self.layers:
            state = layer(state, position, allowed)
        return state


class DetrOutput(NamedTuple):
    """Outputs of the decoder layers, clip scores (k B, L), encoded clips (B, L, d)."""

    layers: list[LayerOutput]
    saliency: Tensor
    memory: Tensor


class TokenDetr(nn.Module):
    """Encoder over [saliency token; clips], clip scores, DAB decoder over clips, heads.

    The part of QD-DETR after its first stage, and of VideoLights after its first two.
    """

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
