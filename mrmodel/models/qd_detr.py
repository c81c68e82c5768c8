"""QD-DETR (Moon et al. 2023): clips read the sentence first, then a DAB-style decoder finds spans.

Follows the published code; where it differs from the paper see baselines.md, sections 4 and 10.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mrmodel.losses.contrastive import ContrastiveLoss
from mrmodel.losses.criterion import ClipLoss, DetrCriterion, LayerLoss
from mrmodel.losses.matching import HungarianMatcher
from mrmodel.losses.saliency import QueryDependentSaliencyLoss
from mrmodel.losses.span import LabelLoss, SpanLoss
from mrmodel.models.base import MomentModel
from mrmodel.models.layers.dab_decoder import DabDecoder
from mrmodel.models.layers.encoder import EncoderLayer, TextToVideoLayer
from mrmodel.models.layers.feed_forward import Mlp
from mrmodel.models.layers.heads import ContrastiveHead, SaliencyHead, foreground_scores
from mrmodel.models.layers.initialise import xavier_matrices
from mrmodel.models.layers.masks import key_mask, legacy_tiled_mask
from mrmodel.models.layers.position import (
    TextPositions,
    clip_positions,
    repeat_positions,
)
from mrmodel.models.layers.projection import input_projection
from mrmodel.models.layers.stack import Stack
from mrmodel.models.settings import DetrSettings
from mrmodel.spans import inverse_sigmoid
from mrmodel.types import Batch, LayerOutput, ModelOutput, Targets


class QdDetrSettings(DetrSettings):
    """`DetrSettings` and what only QD-DETR has; it has `encoder_layers` text-to-video layers too.

    Attributes:
        legacy_mask_tiling: hide tokens by the padding of other samples, as the published code does.
        legacy_negative_positions: with `text_positions`, a negative sentence keeps the positions
            of the sentence that it replaces.
        legacy_empty_alignment: with `contrastive`, align with the published empty token list, which
            makes that loss a constant.
    """

    legacy_mask_tiling: bool = False
    legacy_negative_positions: bool = False
    legacy_empty_alignment: bool = False


class QdDetr(MomentModel):
    """Text-to-video layers, encoder over [saliency token; clips], DAB decoder over clips."""

    Settings: ClassVar[type[QdDetrSettings]] = QdDetrSettings
    settings: QdDetrSettings

    def __init__(self, video_dim: int, text_dim: int, settings: QdDetrSettings) -> None:
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
        self.text_to_video: Stack[TextToVideoLayer] = Stack(
            TextToVideoLayer(s) for _ in range(s.encoder_layers)
        )
        self.token = nn.Parameter(torch.randn(s.hidden))
        self.token_position = nn.Parameter(torch.randn(s.hidden))
        self.encoder: Stack[EncoderLayer] = Stack(
            EncoderLayer(s, "prelu") for _ in range(s.encoder_layers)
        )
        self.decoder = DabDecoder(s)
        self.anchors = nn.Parameter(torch.randn(s.queries, 2))
        self.class_head = nn.Linear(s.hidden, 2)
        self.span_head = Mlp(s.hidden, s.hidden, 2, 3)
        self.saliency_head = SaliencyHead(s.hidden)
        self.contrastive = ContrastiveHead(s.hidden, s.contrastive_width) if s.contrastive else None
        xavier_matrices(self.text_to_video, self.encoder, self.decoder)

    def forward(self, batch: Batch, targets: Targets | None = None) -> ModelOutput:
        """Windows and clip scores of a batch.

        In training every clip sequence is also paired with the sentence of the next sample. Both
        pairs walk through the encoder as one batch of 2B; only the real pairs are decoded.

        Returns:
            `ModelOutput`; in training `extras` holds ``negative_saliency`` (B, L).
        """
        size = len(batch)
        text = self.text_projection(batch.text)
        position = clip_positions(batch.video_mask, self.settings.hidden)
        video = self._read_text(self.video_projection(batch.video), position, text, batch)
        token, clips = self._encode(video, position, batch.video_mask)
        saliency = self.saliency_head(clips, token).float()

        memory = clips[:size]
        states, references = self.decoder(
            self.anchors, memory, position, key_mask(batch.video_mask)
        )
        layers = self._heads(states, references)
        extras = {"negative_saliency": saliency[size:]} if self.training else {}
        if self.contrastive is not None:
            empty = self.settings.legacy_empty_alignment
            tokens, mask = (memory[:, :0], None) if empty else (text, batch.text_mask)
            extras["contrastive_text"] = self.contrastive.sum_text(tokens, mask)
        return ModelOutput(
            last=layers[-1],
            spans_cxw=layers[-1].spans_cxw,
            scores=foreground_scores(layers[-1]),
            saliency=saliency[:size],
            aux=tuple(layers[:-1]) if self.training and self.settings.aux_loss else (),
            extras=extras,
        )

    def criterion(self) -> DetrCriterion:
        """Moment losses of matched windows and the three-part saliency loss."""
        s = self.settings
        layer_losses: list[LayerLoss] = [SpanLoss(), LabelLoss(s.background_weight)]
        if self.contrastive is not None:
            layer_losses.append(ContrastiveLoss(s.contrastive_temperature))
        clip_losses: list[ClipLoss] = [QueryDependentSaliencyLoss(s.saliency_margin)]
        return DetrCriterion(
            layer_losses=layer_losses,
            clip_losses=clip_losses,
            weights=s.loss.model_dump(),
            matcher=None if s.highlights_only else HungarianMatcher.from_weights(s.matcher),
        )

    def _read_text(self, video: Tensor, position: Tensor, text: Tensor, batch: Batch) -> Tensor:
        """Clips (B, L, d) -> clips that read their sentence, in training (2B, L, d) with negatives.

        A layer's keys and values of the text are projected once: those of a negative sentence are
        the next sample's.
        """
        located = text if self.text_positions is None else text + self.text_positions(text)
        allowed = self._allowed_tokens(batch)
        for layer in self.text_to_video:
            keys = layer.attention.project_key(located)
            values = layer.attention.project_value(text)
            if self.training:
                keys = torch.cat((keys, self._negative_keys(layer, keys, located, text)))
                values = torch.cat((values, _next_sample(values)))
            video = layer(video, position, (keys, values), allowed)
            position = repeat_positions(position, len(video))
        return video

    def _negative_keys(
        self, layer: TextToVideoLayer, keys: Tensor, located: Tensor, text: Tensor
    ) -> Tensor:
        if not self.settings.legacy_negative_positions:
            return _next_sample(keys)
        return layer.attention.project_key(_next_sample(text) + (located - text))

    def _allowed_tokens(self, batch: Batch) -> Tensor | None:
        masks = [batch.text_mask]
        if self.training:
            masks.append(_next_sample(batch.text_mask))
        if not self.settings.legacy_mask_tiling:
            return key_mask(torch.cat(masks))
        heads = self.settings.heads
        return torch.cat([legacy_tiled_mask(batch.video_mask, mask, heads) for mask in masks])

    def _encode(self, video: Tensor, position: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Self-attention over [token; clips]: (k B, L, d) -> token (k B, d), clips (k B, L, d)."""
        token = self.token.expand(len(video), 1, -1)
        token_position = self.token_position.expand(len(position), 1, -1)
        sequence = torch.cat((token.to(video.dtype), video), dim=1)
        position = repeat_positions(torch.cat((token_position, position), dim=1), len(video))
        valid = torch.cat((torch.ones_like(mask[:, :1]), mask), dim=1)
        allowed = key_mask(valid.repeat(len(video) // len(mask), 1))
        for layer in self.encoder:
            sequence = layer(sequence, position, allowed)
        first, clips = torch.split(sequence, [1, video.shape[1]], dim=1)
        return first.squeeze(1), clips

    def _heads(self, states: Tensor, references: Tensor) -> list[LayerOutput]:
        """States and references (layers, B, Q, ...) -> one output for each layer."""
        logits = self.class_head(states).float()
        spans_cxw = (self.span_head(states).float() + inverse_sigmoid(references)).sigmoid()
        extras: list[dict[str, Tensor]] = [{} for _ in states]
        if self.contrastive is not None:
            for extra, queries in zip(extras, self.contrastive.project_query(states), strict=True):
                extra["contrastive_query"] = queries
        return [LayerOutput(*parts) for parts in zip(logits, spans_cxw, extras, strict=True)]


def _next_sample(rows: Tensor) -> Tensor:
    """Row i becomes row i + 1, the last one row 0: the negative pairs of section 1.5."""
    return rows.roll(-1, 0)
