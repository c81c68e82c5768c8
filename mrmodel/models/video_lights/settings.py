"""Settings and search space of VideoLights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mrmodel.config.base import Count, NonNegative, Section
from mrmodel.config.search_space import FloatRange, SearchSpace
from mrmodel.models.settings import DETR_SPACE, DetrSettings, DropRate, LossWeights

Correspondence = Literal["constant", "words"]


def _odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError(f"{number} is even: a clip has as many neighbours before it as after it")
    return number


OddCount = Annotated[int, Field(ge=1), AfterValidator(_odd)]


class BidirectionalFusionSettings(Section):
    """Bi-directional cross-modal fusion (Bi-CMF).

    Attributes:
        layers: number of layers; each attends to the projected tokens.
        ffn_residual: add the input of the feed-forward block to its output. The published block
            adds its output to itself.
        text_norm: a norm after the tokens' attention to the clips. The published code creates one
            but does not use it.
    """

    layers: Count = 1
    ffn_residual: bool = False
    text_norm: bool = False


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
