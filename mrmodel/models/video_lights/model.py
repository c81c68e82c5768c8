"""VideoLights (Paul et al. 2024): refined clips, bi-directional fusion, QD-DETR's decoder.

Follows the published code. What the switches correct: docs/models/video_lights.md, sections 7 to 8.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from mrmodel.config.base import Count, NonNegative, Section
from mrmodel.config.search_space import FloatRange, SearchSpace
from mrmodel.losses.criterion import ClipLoss, DetrCriterion
from mrmodel.losses.saliency import QueryDependentSaliencyLoss
from mrmodel.models.base import MomentModel
from mrmodel.models.detr_criterion import detr_criterion
from mrmodel.models.layers.functional import Stack, cross_mask, with_next_sample
from mrmodel.models.layers.heads import detr_output
from mrmodel.models.layers.position import clip_positions, repeat_positions
from mrmodel.models.layers.projection import InputProjections, Projected
from mrmodel.models.layers.token_detr import TokenDetr
from mrmodel.models.settings import DETR_SPACE, DetrSettings, DropRate, LossWeights
from mrmodel.models.video_lights.bi_directional_fusion import (
    BiDirectionalFusionLayer,
    BidirectionalFusionSettings,
    CrossMasks,
    Text,
)
from mrmodel.models.video_lights.feature_refinement import (
    Correspondence,
    FeatureRefinement,
    clip_cosine,
)
from mrmodel.models.video_lights.losses import HARD_LOSSES, DirectionLosses
from mrmodel.models.video_lights.moment_to_highlight import MomentToHighlight
from mrmodel.types import Batch, LayerOutput, ModelOutput, Targets


def _odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError(f"{number} is even: a clip has as many neighbours before it as after it")
    return number


OddCount = Annotated[int, Field(ge=1), AfterValidator(_odd)]


class RefinementSettings(Section):
    """Feature refinement (FRA), see `FeatureRefinement`; `dropout` null: that of all layers."""

    correspondence: Correspondence = "constant"
    dropout: DropRate | None = None


class VideoLightsLossWeights(LossWeights):
    """`LossWeights` and those of `DirectionLosses`; the published lambda_al sets two of them.

    Attributes:
        contrastive, video_text: alignment of queries, and of clips, with the text.
        task_specific: cosine of scores and labels.
        task_coupled: cosine of the scores derived from the best window and the labels.
        hard_negative, hard_positive: value in the first epoch; see `hard_growth`.
    """

    contrastive: NonNegative = 0.2
    video_text: NonNegative = 0.2
    task_specific: NonNegative = 1.0
    task_coupled: NonNegative = 1.0
    hard_negative: NonNegative = 10.0
    hard_positive: NonNegative = 10.0


class VideoLightsSettings(DetrSettings):
    """`DetrSettings` and the settings specific to VideoLights.

    Attributes:
        kernel: kernel size of the projection layers; 1 as published.
        refinement, fusion: the two stages before the encoder.
        contrastive: both alignment losses.
        moment_to_highlight: the training-only branch of the joint-task feedback, and its loss.
        hard_growth: multiply the weight of the hard losses by the epoch number.
        batch_reduction: of the cosine terms, see `DirectionLosses`.
        legacy_mask_tiling: mask tokens and clips by the padding of other samples, as published.
        legacy_loss_padding: as published, include padding in the losses, and take the minimum
            score over the whole batch.
        legacy_window_slice: see `MomentToHighlight`.
    """

    encoder_layers: Count = 3
    decoder_layers: Count = 3
    kernel: OddCount = 1
    refinement: RefinementSettings = RefinementSettings()
    fusion: BidirectionalFusionSettings = BidirectionalFusionSettings()
    contrastive: bool = True
    moment_to_highlight: bool = True
    hard_growth: bool = True
    batch_reduction: Literal["sum", "mean"] = "sum"
    loss: VideoLightsLossWeights = VideoLightsLossWeights()
    legacy_mask_tiling: bool = False
    legacy_loss_padding: bool = False
    legacy_window_slice: bool = False


# The published lambda_al is 0.01 to 0.3, depending on the data set.
SEARCH_SPACE: SearchSpace = {
    **DETR_SPACE,
    "loss.contrastive": FloatRange(low=0.01, high=1.0, log=True, when={"contrastive": [True]}),
    "loss.video_text": FloatRange(low=0.01, high=1.0, log=True, when={"contrastive": [True]}),
    "loss.task_specific": FloatRange(low=0.1, high=3.0, log=True),
    "loss.task_coupled": FloatRange(
        low=0.1, high=3.0, log=True, when={"moment_to_highlight": [True]}
    ),
    "loss.hard_negative": FloatRange(low=1.0, high=30.0, log=True),
    "loss.hard_positive": FloatRange(low=1.0, high=30.0, log=True),
}


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
