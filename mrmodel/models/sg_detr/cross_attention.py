"""Saliency-guided cross attention: clips read the sentence as far as it concerns them (eqs 3-5).

As in the published code there are no projections of query, key and value, and the gate belongs to
the clip. docs/models/sg_detr.md, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.models.layers.attention import attend
from mrmodel.models.layers.dropout import branch_dropout
from mrmodel.models.layers.feed_forward import FeedForward, add_projected, xavier_feed_forward
from mrmodel.models.layers.functional import copies_of, key_mask, with_negatives
from mrmodel.models.layers.position import repeat_positions
from mrmodel.models.sg_detr.settings import SgDetrSettings


class SaliencyGuidedLayer(nn.Module):
    """x = clip + Path(attention * gate), then LN2(x + Path(LN1(FFN(x)))).

    The output projection keeps its bias: a closed gate still adds a constant vector.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        hidden, p = settings.hidden, settings.dropout
        self.heads, self.weights_p = settings.heads, p
        self.output = nn.Linear(hidden, hidden)
        self.ffn = FeedForward(hidden, settings.ffn, p, "prelu", 0.0)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.branch = branch_dropout(p, settings.drop)
        nn.init.xavier_uniform_(self.output.weight)
        xavier_feed_forward(self)

    def forward(
        self,
        clips: Tensor,
        position: Tensor,
        tokens: Tensor,
        gate: Tensor | None,
        allowed: Tensor | None,
    ) -> Tensor:
        """Mix text into clips.

        Args:
            clips: (B, L, d).
            position: (B or 1, L, d) codes of the clips.
            tokens: (B, N, d).
            gate: (B, L) factors of what the clips read; None: 1.
            allowed: tokens that may be read, as in `attend`.

        Returns:
            (B, L, d).
        """
        p = self.weights_p if self.training else 0.0
        read = attend(clips + position, tokens, tokens, self.heads, allowed, p)
        if gate is not None:
            # Scaling the weights of a clip scales what it reads.
            read = read * gate.unsqueeze(-1).to(read.dtype)
        clips = add_projected(read, clips, self.output, self.branch, None)
        mixed = self.ffn(clips, torch.zeros_like(clips), self.norm1)
        normed: Tensor = self.norm2(clips + self.branch(mixed))
        return normed


class TextToVideo(nn.Module):
    """Layers of `SaliencyGuidedLayer`, and one LayerNorm of clips and tokens after each.

    The norm is one for all layers, and applied once more at the end, as published.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        self.layers = copies_of(SaliencyGuidedLayer(settings), settings.cross_attention_layers)
        self.norm = nn.LayerNorm(settings.hidden)
        self.guided = settings.saliency_guided

    def forward(
        self,
        clips: tuple[Tensor, Tensor],
        tokens: tuple[Tensor, Tensor],
        local: Tensor,
        negative: Tensor | None,
    ) -> Tensor:
        """Clips that have read their sentence, and in training the negative one.

        Args:
            clips: (B, L, d) and their position codes (B or 1, L, d).
            tokens: (B, N, d) and their mask (B, N).
            local: (k B, L) local saliency of the pairs of clips and sentence.
            negative: (B,) index of the negative sentence; None: k = 1.

        Returns:
            (k B, L, d).
        """
        (states, position), (words, mask) = clips, tokens
        copies = len(local) // len(states)
        states, position = states.repeat(copies, 1, 1), repeat_positions(position, len(local))
        gate = local.sigmoid() if self.guided else None
        allowed = key_mask(with_negatives(mask, negative))
        for layer in self.layers:
            states = self.norm(
                layer(states, position, with_negatives(words, negative), gate, allowed)
            )
            # The words of a sample do not depend on its clips.
            words = self.norm(words)
        normed: Tensor = self.norm(states)
        return normed
