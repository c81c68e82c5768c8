"""Moment-DETR (Lei, Berg, Bansal 2021): a DETR over clips and tokens that predicts windows.

Follows the published code; docs/models/moment_detr.md lists where it differs from the paper.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mrmodel.config.search_space import SearchSpace
from mrmodel.losses.criterion import DetrCriterion
from mrmodel.losses.saliency import SaliencyMarginLoss
from mrmodel.losses.span import ClipIndexLoss
from mrmodel.models.base import MomentModel
from mrmodel.models.detr_criterion import detr_criterion
from mrmodel.models.layers.attention import Inputs, MultiheadAttention
from mrmodel.models.layers.encoder import EncoderLayer
from mrmodel.models.layers.feed_forward import FeedForward
from mrmodel.models.layers.functional import Stack, key_mask, xavier_matrices
from mrmodel.models.layers.heads import DecoderHeads, detr_output
from mrmodel.models.layers.position import clip_positions
from mrmodel.models.layers.projection import InputProjections
from mrmodel.models.settings import DETR_SPACE, DetrSettings, MomentDetrSettings
from mrmodel.types import Batch, LayerOutput, ModelOutput, Targets


class Memory(NamedTuple):
    """Keys and values of the decoder's cross-attention.

    `content` (B, T, d), `located` = content + positions, `allowed` as in `attend`.
    """

    content: Tensor
    located: Tensor
    allowed: Tensor | None


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the memory; ReLU feed-forward; three norms.

    Post-norm as in `EncoderLayer`; with `pre_norm` each branch is normalised at its input.
    """

    def __init__(self, settings: DetrSettings, pre_norm: bool = False) -> None:
        super().__init__()
        hidden, p = settings.hidden, settings.dropout
        self.self_attention = MultiheadAttention(hidden, settings.heads, p, settings.drop)
        self.cross_attention = MultiheadAttention(hidden, settings.heads, p, settings.drop)
        self.ffn = FeedForward(hidden, settings.ffn, p, "relu", settings.drop)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.norm3 = nn.LayerNorm(hidden)
        self.pre_norm = pre_norm

    def forward(self, target: Tensor, query: Tensor, memory: Memory) -> Tensor:
        """Target (B, Q, d), learned query codes (Q, d) -> (B, Q, d)."""
        before, after = (True, False) if self.pre_norm else (False, True)
        source = self.norm1(target) if before else target
        located = source + query
        inputs = Inputs(located, located, source)
        target = self.self_attention(inputs, None, target, self.norm1 if after else None)

        source = self.norm2(target) if before else target
        inputs = Inputs(source + query, memory.located, memory.content)
        target = self.cross_attention(inputs, memory.allowed, target, self.norm2 if after else None)

        source = self.norm3(target) if before else target
        decoded: Tensor = self.ffn(source, target, self.norm3 if after else None)
        return decoded


class MomentDetr(MomentModel):
    """Encoder over [clips; tokens], vanilla decoder, shared heads on every decoder layer."""

    Settings: ClassVar[type[MomentDetrSettings]] = MomentDetrSettings
    search_space: ClassVar[SearchSpace] = DETR_SPACE
    settings: MomentDetrSettings

    def __init__(self, video_dim: int, text_dim: int, settings: MomentDetrSettings) -> None:
        super().__init__()
        self.settings = s = settings
        self.projections = InputProjections(video_dim, text_dim, s)
        self.encoder: Stack[EncoderLayer] = Stack(
            EncoderLayer(s, "relu", s.pre_norm) for _ in range(s.encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(s.hidden) if s.pre_norm else nn.Identity()
        self.decoder: Stack[DecoderLayer] = Stack(
            DecoderLayer(s, s.pre_norm) for _ in range(s.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(s.hidden)
        self.queries = nn.Parameter(torch.randn(s.queries, s.hidden))
        self.heads = DecoderHeads(s, 2 if s.span_loss == "l1" else 2 * s.max_clips)
        self.saliency_head = nn.Linear(s.hidden, 1)
        xavier_matrices(self.encoder, self.decoder)

    def forward(
        self, batch: Batch, targets: Targets | None = None, progress: float = 0.0
    ) -> ModelOutput:
        """Windows and clip scores of a batch.

        Returns:
            `ModelOutput`; with ``span_loss: ce`` each layer's `extras` hold ``start_end_logits``
            (B, Q, 2, max_clips).
        """
        clips = batch.video.shape[1]
        memory = self._encode(batch)
        layers = self._heads(self._decode(memory), batch)
        saliency = self.saliency_head(memory.content[:, :clips]).squeeze(-1).float()
        extras = {}
        if self.heads.contrastive is not None:
            tokens = memory.content[:, clips:]
            mask = None if self.settings.legacy_contrastive_padding else batch.text_mask
            extras["contrastive_text"] = self.heads.contrastive.sum_text(tokens, mask)
        return detr_output(layers, saliency, extras, self.training and self.settings.aux_loss)

    def criterion(self) -> DetrCriterion:
        """L1 + gIoU + class losses of matched windows, margin loss on clip pairs."""
        s = self.settings
        span_loss = ClipIndexLoss() if s.span_loss == "ce" else None
        return detr_criterion(s, [SaliencyMarginLoss(s.saliency_margin)], span_loss)

    def _encode(self, batch: Batch) -> Memory:
        video, text, text_position = self.projections(batch.video, batch.text)
        if text_position is None:
            text_position = torch.zeros_like(text)
        clip_position = clip_positions(batch.video_mask, self.settings.hidden)
        clip_position = clip_position.expand(len(text), -1, -1)
        position = torch.cat((clip_position, text_position), dim=1)
        allowed = key_mask(torch.cat((batch.video_mask, batch.text_mask), dim=1))
        sequence = torch.cat((video, text), dim=1)
        for layer in self.encoder:
            sequence = layer(sequence, position, allowed)
        sequence = self.encoder_norm(sequence)
        return Memory(sequence, sequence + position, allowed)

    def _decode(self, memory: Memory) -> Tensor:
        target = torch.zeros_like(self.queries).expand(len(memory.content), -1, -1)
        targets = []
        for layer in self.decoder:
            target = layer(target, self.queries, memory)
            targets.append(target)
        states: Tensor = self.decoder_norm(torch.stack(targets))
        return states

    def _heads(self, states: Tensor, batch: Batch) -> list[LayerOutput]:
        """States (layers, B, Q, d) -> one output for each layer."""
        if self.settings.span_loss == "l1":
            found: list[LayerOutput] = self.heads(states)
            return found
        start_end = self.heads.span_head(states).float().unflatten(-1, (2, -1))
        spans_cxw = _spans_of_clips(start_end, batch.video_mask)
        return self.heads.outputs(states, spans_cxw, {"start_end_logits": start_end})


def _spans_of_clips(start_end_logits: Tensor, video_mask: Tensor) -> Tensor:
    """Best first and last clip (layers, B, Q, 2, C) -> spans (layers, B, Q, 2) as centre, width.

    An end before its start gives a window of one clip.
    """
    first, last = start_end_logits.argmax(-1).unbind(-1)
    last = last.maximum(first)
    clips = video_mask.sum(1)[None, :, None].float()
    return torch.stack(((first + last + 1) / 2 / clips, (last - first + 1) / clips), -1).clamp(0, 1)
