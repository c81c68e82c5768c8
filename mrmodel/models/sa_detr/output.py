"""Training outputs of SA-DETR besides windows and clip scores: the inputs of its losses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sa_detr.span_refiner import RefinedQueries
from mrmodel.types import ModelOutput


@dataclass(slots=True)
class PooledPair:
    """One vector per video and one per sentence, (B, d) each."""

    video: Tensor
    text: Tensor


@dataclass(slots=True)
class ClipText:
    """Clips (B, L, d) and the sentence token (B, d) to compare them with."""

    clips: Tensor
    sentence: Tensor


@dataclass(slots=True)
class SaDetrTraining:
    """Inputs of the losses; None for parts that the settings switch off.

    Attributes:
        negative_saliency: (B, L) clip scores under a sentence of another video.
        has_negative: (B,) bool, the batch has such a sentence.
        pooled: for video-text contrast.
        clip_text: for clip-text matching.
        first_spans: (B, Q, 2) direct spans before the refiner.
        direct: predictions of the direct queries.
        noise, noise_queries: predictions of the noise queries, and their targets.
        idle: 0, attached to the noise contents if this batch has no noise queries.
    """

    negative_saliency: Tensor
    has_negative: Tensor
    pooled: PooledPair | None = None
    clip_text: ClipText | None = None
    first_spans: Tensor | None = None
    direct: RefinedQueries | None = None
    noise: RefinedQueries | None = None
    noise_queries: LabelledQueries | None = None
    idle: Tensor | None = None


@dataclass(slots=True)
class SaDetrOutput(ModelOutput):
    """`ModelOutput` with `training` in training mode."""

    training: SaDetrTraining | None = None
