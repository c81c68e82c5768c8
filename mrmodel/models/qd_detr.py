"""QD-DETR (Moon et al. 2023): clips attend to the text, then a DAB-style decoder predicts spans.

Follows the published code; docs/models/qd_detr.md lists where it differs from the paper.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mrmodel.config.search_space import SearchSpace
from mrmodel.losses.criterion import DetrCriterion
from mrmodel.losses.saliency import QueryDependentSaliencyLoss
from mrmodel.models.base import MomentModel
from mrmodel.models.detr_criterion import detr_criterion
from mrmodel.models.layers.encoder import TextToVideoLayer
from mrmodel.models.layers.functional import Stack, cross_mask, next_sample, with_next_sample
from mrmodel.models.layers.heads import detr_output
from mrmodel.models.layers.position import clip_positions, repeat_positions
from mrmodel.models.layers.projection import InputProjections, Projected
from mrmodel.models.layers.token_encoder import TokenDetr
from mrmodel.models.settings import DETR_SPACE, QdDetrSettings
from mrmodel.types import Batch, ModelOutput, Targets


class QdDetr(MomentModel):
    """Text-to-video layers, encoder over [saliency token; clips], DAB decoder over clips."""

    Settings: ClassVar[type[QdDetrSettings]] = QdDetrSettings
    search_space: ClassVar[SearchSpace] = DETR_SPACE
    settings: QdDetrSettings

    def __init__(self, video_dim: int, text_dim: int, settings: QdDetrSettings) -> None:
        super().__init__()
        self.settings = s = settings
        self.projections = InputProjections(video_dim, text_dim, s)
        self.text_to_video: Stack[TextToVideoLayer] = Stack(
            TextToVideoLayer(s) for _ in range(s.encoder_layers)
        )
        self.detr = TokenDetr(s)
        self.detr.initialise(self.text_to_video)

    def forward(
        self, batch: Batch, targets: Targets | None = None, progress: float = 0.0
    ) -> ModelOutput:
        """Windows and clip scores of a batch.

        In training every clip sequence is also paired with the sentence of the next sample. Both
        pairs go through the encoder as one batch of 2B; only the real pairs are decoded.

        Returns:
            `ModelOutput`; in training `extras` holds ``negative_saliency`` (B, L).
        """
        size = len(batch)
        inputs = self.projections(batch.video, batch.text)
        position = clip_positions(batch.video_mask, self.settings.hidden)
        video = self._read_text(inputs, position, batch)
        layers, saliency, memory = self.detr(video, position, batch.video_mask)
        extras = {"negative_saliency": saliency[size:]} if self.training else {}
        contrastive = self.detr.heads.contrastive
        if contrastive is not None:
            empty = self.settings.legacy_empty_alignment
            tokens, mask = (memory[:, :0], None) if empty else (inputs.text, batch.text_mask)
            extras["contrastive_text"] = contrastive.sum_text(tokens, mask)
        keep_aux = self.training and self.settings.aux_loss
        return detr_output(layers, saliency[:size], extras, keep_aux)

    def criterion(self) -> DetrCriterion:
        """Losses of matched windows and the three-part saliency loss."""
        saliency_loss = QueryDependentSaliencyLoss(self.settings.saliency_margin)
        return detr_criterion(self.settings, [saliency_loss])

    def _read_text(self, inputs: Projected, position: Tensor, batch: Batch) -> Tensor:
        """Clips (B, L, d) after attention to their text; in training (2B, L, d) with negatives.

        A layer projects the keys and values of the text once: those of a negative sentence are the
        next sample's.
        """
        video, text, text_position = inputs
        located = text if text_position is None else text + text_position
        allowed = self._allowed_tokens(batch)
        for layer in self.text_to_video:
            keys = layer.attention.project_key(located)
            values = layer.attention.project_value(text)
            if self.training:
                keys = torch.cat((keys, self._negative_keys(layer, keys, located, text)))
                values = with_next_sample(values)
            video = layer(video, position, (keys, values), allowed)
            position = repeat_positions(position, len(video))
        return video

    def _negative_keys(
        self, layer: TextToVideoLayer, keys: Tensor, located: Tensor, text: Tensor
    ) -> Tensor:
        if not self.settings.legacy_negative_positions:
            return next_sample(keys)
        return layer.attention.project_key(next_sample(text) + (located - text))

    def _allowed_tokens(self, batch: Batch) -> Tensor | None:
        clips, tokens, s = batch.video_mask, batch.text_mask, self.settings
        if self.training:
            clips, tokens = clips.repeat(2, 1), with_next_sample(tokens)
        return cross_mask(clips, tokens, s.heads, len(batch) if s.legacy_mask_tiling else 0)
