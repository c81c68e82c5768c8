"""Moment-DETR (Lei, Berg, Bansal 2021): a DETR over clips and tokens, read as windows.

Follows the published code; where it differs from the paper see baselines.md, sections 3 and 10.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mrmodel.config import Count
from mrmodel.losses.contrastive import ContrastiveLoss
from mrmodel.losses.criterion import ClipLoss, DetrCriterion, LayerLoss
from mrmodel.losses.matching import HungarianMatcher
from mrmodel.losses.saliency import SaliencyMarginLoss
from mrmodel.losses.span import ClipIndexLoss, LabelLoss, SpanLoss
from mrmodel.models.base import MomentModel
from mrmodel.models.layers.decoder import DecoderLayer, Memory
from mrmodel.models.layers.encoder import EncoderLayer
from mrmodel.models.layers.feed_forward import Mlp
from mrmodel.models.layers.heads import ContrastiveHead, foreground_scores
from mrmodel.models.layers.initialise import xavier_matrices
from mrmodel.models.layers.masks import key_mask
from mrmodel.models.layers.position import TextPositions, clip_positions
from mrmodel.models.layers.projection import input_projection
from mrmodel.models.layers.stack import Stack
from mrmodel.models.settings import DetrSettings
from mrmodel.types import Batch, LayerOutput, ModelOutput, Targets


class MomentDetrSettings(DetrSettings):
    """`DetrSettings` and what only Moment-DETR has.

    Attributes:
        pre_norm: norms before attention and feed-forward instead of after them.
        span_loss: ``l1`` regresses (centre, width); ``ce`` classifies the first and the last clip
            among `max_clips` (off in every published run).
        max_clips: classes of ``ce``.
        legacy_contrastive_padding: let padded tokens take part in the alignment loss.
    """

    pre_norm: bool = False
    span_loss: Literal["l1", "ce"] = "l1"
    max_clips: Count = 75
    legacy_contrastive_padding: bool = False


class MomentDetr(MomentModel):
    """Encoder over [clips; tokens], vanilla decoder, shared heads on every decoder layer."""

    Settings: ClassVar[type[MomentDetrSettings]] = MomentDetrSettings
    settings: MomentDetrSettings

    def __init__(self, video_dim: int, text_dim: int, settings: MomentDetrSettings) -> None:
        super().__init__()
        self.settings = s = settings
        self.video_projection = input_projection(
            video_dim, s.hidden, s.input_dropout, s.projection_layers
        )
        self.text_projection = input_projection(
            text_dim, s.hidden, s.input_dropout, s.projection_layers
        )
        self.text_positions = (
            TextPositions(s.max_tokens, s.hidden, s.input_dropout) if s.text_positions else None
        )
        self.encoder: Stack[EncoderLayer] = Stack(
            EncoderLayer(s, "relu", s.pre_norm) for _ in range(s.encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(s.hidden) if s.pre_norm else nn.Identity()
        self.decoder: Stack[DecoderLayer] = Stack(
            DecoderLayer(s, s.pre_norm) for _ in range(s.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(s.hidden)
        self.queries = nn.Parameter(torch.randn(s.queries, s.hidden))
        self.class_head = nn.Linear(s.hidden, 2)
        self.span_head = Mlp(s.hidden, s.hidden, 2 if s.span_loss == "l1" else 2 * s.max_clips, 3)
        self.saliency_head = nn.Linear(s.hidden, 1)
        self.contrastive = ContrastiveHead(s.hidden, s.contrastive_width) if s.contrastive else None
        xavier_matrices(self.encoder, self.decoder)

    def forward(self, batch: Batch, targets: Targets | None = None) -> ModelOutput:
        """Windows and clip scores of a batch.

        Returns:
            `ModelOutput`; with ``span_loss: ce`` a layer's `extras` hold ``start_end_logits``
            (B, Q, 2, max_clips).
        """
        clips = batch.video.shape[1]
        memory = self._encode(batch)
        layers = self._heads(self._decode(memory), batch)
        last, aux = layers[-1], layers[:-1]
        extras = {}
        if self.contrastive is not None:
            mask = None if self.settings.legacy_contrastive_padding else batch.text_mask
            extras["contrastive_text"] = self.contrastive.sum_text(memory.content[:, clips:], mask)
        return ModelOutput(
            last=last,
            spans_cxw=last.spans_cxw,
            scores=foreground_scores(last),
            saliency=self.saliency_head(memory.content[:, :clips]).squeeze(-1).float(),
            aux=tuple(aux) if self.training and self.settings.aux_loss else (),
            extras=extras,
        )

    def criterion(self) -> DetrCriterion:
        """L1 + gIoU + class of matched windows, margin loss on clip pairs."""
        s = self.settings
        layer_losses: list[LayerLoss] = [
            SpanLoss() if s.span_loss == "l1" else ClipIndexLoss(),
            LabelLoss(s.background_weight),
        ]
        if self.contrastive is not None:
            layer_losses.append(ContrastiveLoss(s.contrastive_temperature))
        clip_losses: list[ClipLoss] = [SaliencyMarginLoss(s.saliency_margin)]
        return DetrCriterion(
            layer_losses=layer_losses,
            clip_losses=clip_losses,
            weights=s.loss.model_dump(),
            matcher=None if s.highlights_only else HungarianMatcher.from_weights(s.matcher),
        )

    def _encode(self, batch: Batch) -> Memory:
        video, text = self.video_projection(batch.video), self.text_projection(batch.text)
        text_position = (
            torch.zeros_like(text) if self.text_positions is None else self.text_positions(text)
        )
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
        states = []
        for layer in self.decoder:
            target = layer(target, self.queries, memory)
            states.append(self.decoder_norm(target))
        return torch.stack(states)

    def _heads(self, states: Tensor, batch: Batch) -> list[LayerOutput]:
        """States (layers, B, Q, d) -> one output for each layer."""
        logits, spans = self.class_head(states).float(), self.span_head(states).float()
        extras: list[dict[str, Tensor]] = [{} for _ in states]
        if self.settings.span_loss == "ce":
            spans = spans.unflatten(-1, (2, -1))
            for extra, start_end in zip(extras, spans, strict=True):
                extra["start_end_logits"] = start_end
            spans_cxw = _spans_of_clips(spans, batch.video_mask)
        else:
            spans_cxw = spans.sigmoid()
        if self.contrastive is not None:
            for extra, queries in zip(extras, self.contrastive.project_query(states), strict=True):
                extra["contrastive_query"] = queries
        return [LayerOutput(*parts) for parts in zip(logits, spans_cxw, extras, strict=True)]


def _spans_of_clips(start_end_logits: Tensor, video_mask: Tensor) -> Tensor:
    """Best first and last clip (layers, B, Q, 2, C) -> spans (layers, B, Q, 2) as centre, width.

    An end before its start gives a window of one clip.
    """
    first, last = start_end_logits.argmax(-1).unbind(-1)
    last = last.maximum(first)
    clips = video_mask.sum(1)[None, :, None].float()
    return torch.stack(((first + last + 1) / 2 / clips, (last - first + 1) / clips), -1).clamp(0, 1)
