"""VideoLights (Paul et al. 2024): refined clips, bi-directional fusion, QD-DETR's decoder.

Follows the published code. What the switches correct: docs/models/video_lights.md, sections 7 to 8.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mrmodel.config.search_space import SearchSpace
from mrmodel.losses.criterion import ClipLoss, DetrCriterion
from mrmodel.losses.saliency import QueryDependentSaliencyLoss
from mrmodel.models.base import MomentModel
from mrmodel.models.detr_criterion import detr_criterion
from mrmodel.models.layers.functional import Stack, cross_mask, with_next_sample
from mrmodel.models.layers.heads import detr_output
from mrmodel.models.layers.position import clip_positions, repeat_positions
from mrmodel.models.layers.projection import InputProjections, Projected
from mrmodel.models.layers.token_encoder import TokenDetr
from mrmodel.models.video_lights.bi_directional_fusion import (
    BiDirectionalFusionLayer,
    CrossMasks,
    Text,
)
from mrmodel.models.video_lights.feature_refinement import FeatureRefinement, clip_cosine
from mrmodel.models.video_lights.losses import HARD_LOSSES, DirectionLosses
from mrmodel.models.video_lights.moment_to_highlight import MomentToHighlight
from mrmodel.models.video_lights.settings import SEARCH_SPACE, VideoLightsSettings
from mrmodel.types import Batch, LayerOutput, ModelOutput, Targets


class VideoLights(MomentModel):
    """Refinement, bi-directional fusion, encoder over [saliency token; clips], DAB decoder."""

    Settings: ClassVar[type[VideoLightsSettings]] = VideoLightsSettings
    search_space: ClassVar[SearchSpace] = SEARCH_SPACE
    settings: VideoLightsSettings

    def __init__(self, video_dim: int, text_dim: int, settings: VideoLightsSettings) -> None:
        super().__init__()
        self.settings = s = settings
        self.projections = InputProjections(video_dim, text_dim, s, s.kernel)
        p = s.dropout if s.refinement.dropout is None else s.refinement.dropout
        self.refinement = FeatureRefinement(
            s.hidden, s.refinement.correspondence, p, s.legacy_loss_padding
        )
        self.fusion: Stack[BiDirectionalFusionLayer] = Stack(
            BiDirectionalFusionLayer(s, s.fusion) for _ in range(s.fusion.layers)
        )
        self.detr = TokenDetr(s)
        self.window_saliency = (
            MomentToHighlight(s.hidden, s.legacy_window_slice) if s.moment_to_highlight else None
        )
        self.detr.initialise(self.fusion)

    def forward(
        self, batch: Batch, targets: Targets | None = None, progress: float = 0.0
    ) -> ModelOutput:
        """Windows and clip scores of a batch.

        In training every clip sequence is also paired with the sentence of the next sample. Both
        pairs go through the encoder as one batch of 2B; only the real pairs are decoded.

        Returns:
            `ModelOutput`; in training `extras` hold ``negative_saliency`` (B, L) and the inputs of
            `DirectionLosses` and `ContrastiveLoss`.
        """
        size, mask = len(batch), batch.video_mask
        inputs = self.projections(batch.video, batch.text, (mask, batch.text_mask))
        refined = self.refinement(inputs.video, inputs.text, mask, batch.text_mask)
        position = clip_positions(mask, self.settings.hidden)
        video = self._fuse(refined, position, inputs, batch)
        layers, saliency, memory = self.detr(video, position, mask)
        extras = {}
        if self.training:
            extras = {"negative_saliency": saliency[size:]}
            extras |= self._alignment(inputs.text, refined, batch)
            extras |= self._feedback(inputs.video, memory, layers[-1], mask)
        keep_aux = self.training and self.settings.aux_loss
        return detr_output(layers, saliency[:size], extras, keep_aux)

    def criterion(self) -> DetrCriterion:
        """QD-DETR's losses, and those on the vector of a sample's clip scores."""
        s = self.settings
        clip_losses: list[ClipLoss] = [
            QueryDependentSaliencyLoss(s.saliency_margin),
            DirectionLosses(s.batch_reduction, s.legacy_loss_padding),
        ]
        return detr_criterion(s, clip_losses, growing=HARD_LOSSES if s.hard_growth else ())

    def _fuse(self, refined: Tensor, position: Tensor, inputs: Projected, batch: Batch) -> Tensor:
        """Clips (B, L, d) fused with their sentence, in training (2B, L, d) with negatives."""
        code = inputs.text_position
        located = inputs.text if code is None else inputs.text + code
        text = Text(inputs.text, located, negatives=self.training)
        allowed = self._allowed(batch)
        for layer in self.fusion:
            refined = layer(refined, position, text, allowed)
            position = repeat_positions(position, len(refined))
        return refined

    def _allowed(self, batch: Batch) -> CrossMasks:
        clips, tokens, s = batch.video_mask, batch.text_mask, self.settings
        if self.training:
            clips, tokens = clips.repeat(2, 1), with_next_sample(tokens)
        tiled = len(batch) if s.legacy_mask_tiling else 0
        return CrossMasks(
            tokens=cross_mask(clips, tokens, s.heads, tiled),
            clips=cross_mask(tokens, clips, s.heads, tiled),
        )

    def _alignment(self, text: Tensor, refined: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Inputs of the alignment losses (docs/models/video_lights.md, section 6.2)."""
        contrastive = self.detr.heads.contrastive
        if contrastive is None or self.settings.highlights_only:
            return {}
        legacy, mask = self.settings.legacy_loss_padding, batch.text_mask
        valid = torch.ones_like(mask) if legacy else mask
        mean = (text * valid.unsqueeze(-1)).sum(1, keepdim=True) / valid.sum(1)[:, None, None]
        return {
            "contrastive_text": contrastive.sum_text(text, None if legacy else mask),
            "video_text_cosine": clip_cosine(refined.float(), mean.float()),
        }

    def _feedback(
        self, video: Tensor, memory: Tensor, windows: LayerOutput, mask: Tensor
    ) -> dict[str, Tensor]:
        """Clip scores from the best window and the text-free clips, for the task-coupled loss."""
        if self.window_saliency is None:
            return {}
        return {"window_saliency": self.window_saliency(video, memory, windows, mask)}
