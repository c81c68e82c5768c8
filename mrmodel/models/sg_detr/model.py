"""SG-DETR (Gordeev et al. 2024), whole: from clips and a sentence to windows and clip scores.

Read `forward` from top to bottom; docs/models/sg_detr.md has the picture, and what the paper leaves
open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

from torch import Tensor, nn

from mrmodel.config.base import validate_section
from mrmodel.config.search_space import SearchSpace
from mrmodel.errors import ConfigError
from mrmodel.features.prepare import TEF_DIM
from mrmodel.losses.negatives import negative_sentences
from mrmodel.models.base import MomentModel
from mrmodel.models.layers.encoder import EncoderLayer
from mrmodel.models.layers.functional import Stack, key_mask, with_negatives, xavier_matrices
from mrmodel.models.layers.heads import no_windows
from mrmodel.models.layers.position import clip_positions, repeat_positions
from mrmodel.models.layers.projection import InputProjections, Projected
from mrmodel.models.sg_detr.criterion import SgDetrCriterion
from mrmodel.models.sg_detr.cross_attention import Gate, SaliencyGuidedLayer
from mrmodel.models.sg_detr.detector import ClipMemory, Detector
from mrmodel.models.sg_detr.moment_encoder import MomentEncoder
from mrmodel.models.sg_detr.output import SgDetrOutput, TrainingParts
from mrmodel.models.sg_detr.pooling import PoolingEncoder
from mrmodel.models.sg_detr.saliency import (
    GlobalSaliency,
    LocalSaliency,
    ScaledCosine,
    pairwise_cosine,
)
from mrmodel.models.sg_detr.settings import (
    PAPER_VALIDATION,
    POST_HOC_SPACE,
    SEARCH_SPACE,
    SgDetrSettings,
)
from mrmodel.types import Batch, Targets


class SgDetr(MomentModel):
    """Pooling, local saliency, guided cross attention, encoder, global saliency, detector."""

    Settings: ClassVar[type[SgDetrSettings]] = SgDetrSettings
    search_space: ClassVar[SearchSpace] = SEARCH_SPACE
    post_hoc_space: ClassVar[SearchSpace] = POST_HOC_SPACE
    settings: SgDetrSettings

    def __init__(self, video_dim: int, text_dim: int, settings: SgDetrSettings) -> None:
        super().__init__()
        self.settings = s = settings
        self.text_dim = text_dim
        raw = s.local.space == "raw"
        if raw and video_dim - TEF_DIM < s.local.first_channel + text_dim:
            rule = (
                f"clips have {video_dim - TEF_DIM} channels, tokens {text_dim}: no common space "
                f"from channel {s.local.first_channel} on; say `projected`"
            )
            raise ConfigError("models.sg_detr.local.space", "raw", rule)
        clip_dim = video_dim if s.use_tef else video_dim - TEF_DIM
        self.projections = InputProjections(clip_dim, text_dim, s)
        sentence_dim = text_dim if raw else s.hidden
        self.pooling = PoolingEncoder(sentence_dim, s)
        self.local_saliency = LocalSaliency(s)
        self.pair_scale = (
            ScaledCosine(s.local.alpha, s.local.beta) if s.sgca.gate.startswith("pair") else None
        )
        self.text_to_video: Stack[SaliencyGuidedLayer] = Stack(
            SaliencyGuidedLayer(s) for _ in range(s.sgca.layers)
        )
        self.encoder: Stack[EncoderLayer] = Stack(
            EncoderLayer(s, "prelu") for _ in range(s.encoder.layers)
        )
        self.global_saliency = GlobalSaliency(s)
        align = s.loss.align.enabled
        self.sentence_projection = nn.Linear(sentence_dim, s.hidden) if align else nn.Identity()
        self.moment_encoder = MomentEncoder(s) if align else None
        xavier_matrices(self.text_to_video, self.encoder)
        if self.moment_encoder is not None:
            xavier_matrices(self.moment_encoder.layer)
        self.detector = None if s.highlights_only else Detector(s)
        if s.preset == "paper":
            self.validation = PAPER_VALIDATION

    @classmethod
    def check_streams(
        cls, settings: Mapping[str, Any], video_dims: Sequence[int], text_dims: Sequence[int]
    ) -> None:
        """Local saliency in raw space needs a video stream that shares the space of the tokens."""
        local = validate_section(SgDetrSettings, dict(settings), "models.sg_detr").local
        first_channels = [0, *accumulate(video_dims)]
        streams = dict(zip(first_channels, video_dims, strict=False))
        if local.space == "raw" and streams.get(local.first_channel) != sum(text_dims):
            rule = (
                f"tokens have {sum(text_dims)} channels, the video streams {list(video_dims)}, and "
                f"none of that width begins at channel {local.first_channel}; say `projected`"
            )
            raise ConfigError("models.sg_detr.local.space", "raw", rule)

    def forward(
        self, batch: Batch, targets: Targets | None = None, progress: float = 0.0
    ) -> SgDetrOutput:
        """Windows and clip scores of a batch.

        In training every video is also paired with a sentence of another video, as far as to the
        clip scores. Given `targets`, training adds what is built from the truth: denoising
        queries, anchor targets, auxiliary queries, alignment tokens.
        """
        size, mask = len(batch), batch.video_mask
        negative, has_negative = negative_sentences(batch, self.training)
        inputs = self.projections(self._clip_rows(batch.video), batch.text)
        position = clip_positions(mask, self.settings.hidden)

        sentence = self._sentence(batch, inputs.text)
        local = self._local_saliency(batch, inputs.video, sentence, negative)
        context = self._read_text(batch, inputs, position, local, negative)
        pairs = len(context) // size
        context = self._encode(context, position, mask.repeat(pairs, 1))
        saliency, memory = self.global_saliency(context, local, mask.repeat(pairs, 1))

        training = None
        if self.training:
            training = TrainingParts(
                local[:size],
                local[size:],
                saliency[size:],
                has_negative.to(mask.device, non_blocking=True),
            )
            if targets is not None and self.moment_encoder is not None:
                relevant = targets.saliency_labels > 0
                training.alignment = self.moment_encoder(
                    inputs.video, position, self.sentence_projection(sentence), relevant, mask
                )
        saliency, seen = saliency[:size], ClipMemory(memory[:size], position, mask)
        if self.detector is None:
            return SgDetrOutput(*no_windows(saliency), saliency, training=training)
        found: SgDetrOutput = self.detector(seen, saliency, targets, training)
        return found

    def criterion(self) -> SgDetrCriterion:
        """All losses of sections 5.2 to 5.5, with the lambdas of the settings."""
        return SgDetrCriterion(self.settings)

    def _clip_rows(self, video: Tensor) -> Tensor:
        return video if self.settings.use_tef else video[..., :-TEF_DIM]

    def _aligned(self, video: Tensor) -> Tensor:
        """The channels of the clip rows that share the space of the tokens."""
        first = self.settings.local.first_channel
        return video[..., first : first + self.text_dim]

    def _sentence(self, batch: Batch, tokens: Tensor) -> Tensor:
        raw = self.settings.local.space == "raw"
        pooled: Tensor = self.pooling(batch.text if raw else tokens, batch.text_mask)
        return pooled

    def _local_saliency(
        self, batch: Batch, clips: Tensor, sentence: Tensor, negative: Tensor | None
    ) -> Tensor:
        """(k B, L); the negative half re-uses the sentences of the batch."""
        rows = self._aligned(batch.video) if self.settings.local.space == "raw" else clips
        sentences = with_negatives(sentence, negative)
        scores: Tensor = self.local_saliency(sentences, rows, batch.video_mask)
        return scores

    def _read_text(
        self,
        batch: Batch,
        inputs: Projected,
        position: Tensor,
        local: Tensor,
        negative: Tensor | None,
    ) -> Tensor:
        """Clips (B, L, d) that read their sentence, and the negative one: (k B, L, d)."""
        clips, tokens, text_position = inputs
        keyed = tokens if text_position is None else text_position
        gate = self._gate(batch, local, negative)
        allowed = key_mask(with_negatives(batch.text_mask, negative))
        for layer in self.text_to_video:
            text = (
                with_negatives(layer.key(keyed), negative),
                with_negatives(layer.value(tokens), negative),
            )
            clips = layer(clips, position, text, gate, allowed)
            position = repeat_positions(position, len(clips))
        return clips

    def _gate(self, batch: Batch, local: Tensor, negative: Tensor | None) -> Gate:
        settings = self.settings.sgca
        if self.pair_scale is not None:
            text = with_negatives(batch.text, negative)
            rows = self._aligned(batch.video).repeat(len(text) // len(batch), 1, 1)
            pair = self.pair_scale(pairwise_cosine(rows, text)).sigmoid()
            return Gate(pair=pair.detach() if settings.detach_gate else pair)
        if settings.gate == "none":
            return Gate()
        clip = local.sigmoid()
        return Gate(clip=clip.detach() if settings.detach_gate else clip)

    def _encode(self, context: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        position, allowed = repeat_positions(position, len(context)), key_mask(mask)
        for layer in self.encoder:
            context = layer(context, position, allowed)
        return context
