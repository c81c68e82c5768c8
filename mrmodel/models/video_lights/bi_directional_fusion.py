"""Bi-directional cross-modal fusion (docs/models/video_lights.md, section 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers.attention import Inputs, MultiheadAttention, attend
from mrmodel.models.layers.dropout import Dropout, branch_dropout
from mrmodel.models.layers.feed_forward import FeedForward, add_projected
from mrmodel.models.layers.functional import with_next_sample
from mrmodel.models.settings import LayerSettings
from mrmodel.models.video_lights.settings import BidirectionalFusionSettings


class Text(NamedTuple):
    """Text input of the layers.

    Tokens (B, N, d) without and with their positions; `negatives`: each sample is also paired with
    the sentence of the next one.
    """

    state: Tensor
    located: Tensor
    negatives: bool

    def pairs(self, rows: Tensor) -> Tensor:
        """Expand token rows (B, ...) to all pairs: (k B, ...)."""
        return with_next_sample(rows) if self.negatives else rows


class CrossMasks(NamedTuple):
    """Masks of clip-to-token and token-to-clip attention, as in `attend`."""

    tokens: Tensor | None
    clips: Tensor | None


class BiDirectionalFusionLayer(nn.Module):
    """Three attentions with an additional linear layer each, and a feed-forward block.

    1. v1 = LN(v + W1 Drop(A1(clips with positions -> tokens)))
    2. t1 = t + W2 Drop(A2(tokens -> clips with positions)), LN with `text_norm`
    3. v2 = LN(v1 + W3 Drop(A3(v1 -> t1))), no positions
    4. y = block(v2); LN(y + Drop(y)), or with `ffn_residual` LN(v2 + Drop(y))
    """

    def __init__(self, settings: LayerSettings, fusion: BidirectionalFusionSettings) -> None:
        super().__init__()
        hidden, p, drop = settings.hidden, settings.dropout, settings.drop

        def attention() -> MultiheadAttention:
            return MultiheadAttention(hidden, settings.heads, p, drop)

        self.read_text, self.read_video = attention(), attention()
        self.read_fused = attention()
        self.linear_text, self.linear_video = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.linear_fused = nn.Linear(hidden, hidden)
        self.ffn = FeedForward(hidden, settings.ffn, p, "prelu", drop)
        self.norm_text, self.norm_fused = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.norm_video = nn.LayerNorm(hidden) if fusion.text_norm else None
        self.norm_ffn = nn.LayerNorm(hidden)
        self.branch, self.nothing = branch_dropout(p, drop), Dropout(0.0)
        self.ffn_residual = fusion.ffn_residual

    def forward(self, video: Tensor, position: Tensor, text: Text, allowed: CrossMasks) -> Tensor:
        """Fuse the clips with their sentence and, in the second half, with the negative one.

        Args:
            video: (B, L, d), or (k B, L, d) from an earlier layer.
            position: codes of the clips (B or 1, L, d), or (k B, L, d).
            text: the sentences.
            allowed: attention masks of all pairs.

        Returns:
            (k B, L, d).
        """
        located, tokens = video + position, text.pairs(text.state)
        copies = len(tokens) // len(video)
        clips = video.repeat(copies, 1, 1)

        a = self.read_text
        read = Inputs(
            a.project_query(located).repeat(copies, 1, 1),
            text.pairs(a.project_key(text.located)),
            text.pairs(a.project_value(text.state)),
        )
        first = self._add(clips, a, read, allowed.tokens, (self.linear_text, self.norm_text))

        a = self.read_video
        read = Inputs(
            text.pairs(a.project_query(text.located)),
            a.project_key(located).repeat(copies, 1, 1),
            a.project_value(video).repeat(copies, 1, 1),
        )
        tokens = self._add(tokens, a, read, allowed.clips, (self.linear_video, self.norm_video))

        a = self.read_fused
        read = Inputs(a.project_query(first), a.project_key(tokens), a.project_value(tokens))
        fused = self._add(first, a, read, allowed.tokens, (self.linear_fused, self.norm_fused))
        if self.ffn_residual:
            return self.ffn(fused, fused, self.norm_ffn)  # type: ignore[no-any-return]
        return self.ffn.doubled(fused, self.norm_ffn)

    def _add(
        self,
        residual: Tensor,
        attention: MultiheadAttention,
        read: Inputs,
        allowed: Tensor | None,
        end: tuple[nn.Linear, nn.LayerNorm | None],
    ) -> Tensor:
        """norm(residual + W Drop(attention))."""
        linear, norm = end
        mixed = attend(*read, attention.heads, allowed, attention.p)
        out = attention.out_proj
        if self.training or torch.is_grad_enabled():
            return add_projected(self.branch(out(mixed)), residual, linear, self.nothing, norm)
        # In eval mode nothing stands between the two linear layers: merge them into one.
        bias = F.linear(out.bias, linear.weight, linear.bias)
        total = residual + F.linear(mixed, linear.weight @ out.weight, bias)
        return total if norm is None else norm(total)
