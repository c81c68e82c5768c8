"""What SA-DETR gives in training besides windows and clip scores: the parts its losses read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sa_detr.span_refiner import RefinedQueries
from mrmodel.types import ModelOutput


@dataclass(slots=True)
class PooledPair:
    """One vector of each video and one of each sentence, (B, d) both."""

    video: Tensor
    text: Tensor


@dataclass(slots=True)
class ClipText:
    """Clips (B, L, d) and the sentence token (B, d) that they are compared with."""

    clips: Tensor
    sentence: Tensor


@dataclass(slots=True)
class SaDetrTraining:
    """What only the losses read; a part that the settings switch off is None.

    Attributes:
        negative_saliency: (B, L) clip scores under a sentence of another video.
        has_negative: (B,) bool, such a sentence was in the batch.
        pooled: for the contrast of videos and sentences.
        clip_text: for the matching of clips and sentences.
        first_spans: (B, Q, 2) direct spans before the refiner.
        direct: predictions of the direct queries.
        noise, noise_queries: those of the noise queries, and what they must answer.
        idle: 0, attached to the contents of noise queries that this batch has none of.
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
