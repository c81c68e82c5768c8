"""SG-DETR (Gordeev et al. 2024), whole: from clips and a sentence to windows and clip scores.

Follows the published code. Read `forward` from top to bottom; docs/models/sg_detr.md has the
picture, and what differs from the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.config.search_space import SearchSpace
from mrmodel.models.base import MomentModel
from mrmodel.models.layers.encoder import EncoderLayer
from mrmodel.models.layers.feed_forward import FeedForward, Mlp
from mrmodel.models.layers.functional import (
    Stack,
    key_mask,
    xavier_matrices,
)
from mrmodel.models.layers.heads import no_windows
from mrmodel.models.layers.position import clip_positions, repeat_positions
from mrmodel.models.layers.projection import InputProjections
from mrmodel.models.layers.query_groups import seeded_generator
from mrmodel.models.sg_detr.criterion import SgDetrCriterion
from mrmodel.models.sg_detr.cross_attention import TextToVideo
from mrmodel.models.sg_detr.decoder import SgDecoder
from mrmodel.models.sg_detr.detector import ClipMemory, Detector
from mrmodel.models.sg_detr.fusion import detection_scores
from mrmodel.models.sg_detr.host_inputs import (
    HostInputs,
    anchor_unit_s,
    make_host_inputs,
    padded_lengths,
    padded_size,
)
from mrmodel.models.sg_detr.moment_encoder import MomentEncoder, SentenceEncoder
from mrmodel.models.sg_detr.output import (
    AnchorOutput,
    Heads,
    RawDetections,
    SgDetrOutput,
    TrainingParts,
)
from mrmodel.models.sg_detr.saliency import GlobalSaliency, LocalSaliency, SentencePooling
from mrmodel.models.sg_detr.selector import QuerySelector
from mrmodel.models.sg_detr.settings import (
    POST_HOC_SPACE,
    RELEASED_VALIDATION,
    SEARCH_SPACE,
    SgDetrSettings,
)
from mrmodel.types import Batch, LayerOutput, Targets

FIRST_MODALITY = 0.02  # standard deviation
TEXT, VIDEO = 0, 1  # rows of the modality table


class SgDetr(MomentModel):
    """Pooling, local saliency, guided cross attention, encoder, global saliency, detector."""

    Settings: ClassVar[type[SgDetrSettings]] = SgDetrSettings
    search_space: ClassVar[SearchSpace] = SEARCH_SPACE
    post_hoc_space: ClassVar[SearchSpace] = POST_HOC_SPACE
    settings: SgDetrSettings

    def __init__(self, video_dim: int, text_dim: int, settings: SgDetrSettings) -> None:
        super().__init__()
        self.settings = s = settings
        self.projections = InputProjections(video_dim, text_dim, s)
        self.modality = nn.Embedding(2, s.hidden)
        self.pooling = SentencePooling(s)
        self.local_saliency = LocalSaliency()
        self.text_to_video = TextToVideo(s)
        self.encoder: Stack[EncoderLayer] = Stack(
            EncoderLayer(s, "prelu") for _ in range(s.encoder_layers)
        )
        xavier_matrices(self.encoder)
        self.global_saliency = GlobalSaliency(s)
        self.sentence_encoder = SentenceEncoder(s) if s.alignment else None
        self.moment_encoder = MomentEncoder(s) if s.alignment else None
        self.detector = None if s.highlights_only else Detector(s)
        nn.init.normal_(self.modality.weight, std=FIRST_MODALITY)
        self._initialise()
        if s.preset == "released":
            self.validation = RELEASED_VALIDATION

    def host_inputs(
        self, batch: Batch, targets: Targets, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Truth and random choices of a step; see `HostInputs`."""
        return make_host_inputs(batch, targets, self.settings, generator).as_mapping()

    def forward(
        self, batch: Batch, targets: Targets | None = None, progress: float = 0.0
    ) -> SgDetrOutput:
        """Windows and clip scores of a batch.

        In training every video is also paired with a sentence of another video, as far as to the
        clip scores, and what is built from the truth exists: auxiliary queries and alignment
        tokens.
        """
        size, clips_given = len(batch), batch.video_mask.shape[1]
        known = self._known(batch, targets)
        video, mask, stretch = self._padded(batch)
        clips, words, _ = self.projections(video, batch.text)
        position = clip_positions(mask, self.settings.hidden)
        sentence = self.pooling(words, batch.text_mask)
        local = self.local_saliency(sentence, clips)

        words = words + self.modality.weight[TEXT].to(words.dtype)
        clips = clips + self.modality.weight[VIDEO].to(clips.dtype)
        negative = None
        if known is not None:
            negative = known.negative
            # As published the negative scores read clips with their modality, the others without.
            local = torch.cat((local, self.local_saliency(sentence[negative], clips)))
        context = self.text_to_video((clips, position), (words, batch.text_mask), local, negative)
        saliency, context = self._in_context(context, position, mask, local)
        memory = self.global_saliency.memory(context[:size], saliency[:size])

        training = None
        if known is not None and targets is not None:
            labels = F.pad(targets.saliency_labels, (0, mask.shape[1] - clips_given))
            training = TrainingParts(
                known, mask, labels, local[:size], saliency[:size], local[size:], saliency[size:]
            )
            if self.moment_encoder is not None and self.sentence_encoder is not None:
                training.alignment = self.moment_encoder(
                    clips, position, self.sentence_encoder(words, batch.text_mask), labels > 0, mask
                )
        scores = saliency[:size, :clips_given]
        if self.detector is None:
            return SgDetrOutput(*no_windows(scores), scores, training=training)
        unit = anchor_unit_s(batch, self.settings) / batch.clip_len_s
        heads, anchors = self.detector(ClipMemory(memory, position, mask), unit, training)
        return self._output(heads, anchors, scores, stretch, training)

    def criterion(self) -> SgDetrCriterion:
        """All losses with the weights of the settings."""
        return SgDetrCriterion(self.settings)

    def _known(self, batch: Batch, targets: Targets | None) -> HostInputs | None:
        if not self.training or targets is None:
            return None
        if targets.host:
            return HostInputs.of(targets.host)
        here = replace(batch, video_mask=batch.video_mask.cpu())
        made = self.host_inputs(here, targets.to("cpu"), seeded_generator())
        device = batch.video_mask.device
        return HostInputs.of({name: tensor.to(device) for name, tensor in made.items()})

    def _padded(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Clips (B, L', Dv), mask (B, L'), and (B,) factor from fractions of L' to those of L.

        With `legacy_padding` zero clips up to a multiple of four are valid.
        """
        mask = batch.video_mask
        size = padded_size(mask.shape[1], self.settings)
        lengths = mask.sum(1)
        padded = padded_lengths(lengths, self.settings)
        video = F.pad(batch.video, (0, 0, 0, size - mask.shape[1]))
        if self.settings.legacy_padding:
            mask = torch.arange(size, device=mask.device) < padded[:, None]
        return video, mask, padded / lengths

    def _in_context(
        self, context: Tensor, position: Tensor, mask: Tensor, local: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Global scores (k B, L) and the clips (k B, L, d) that they are read from."""
        position = repeat_positions(position, len(context))
        allowed = key_mask(mask.repeat(len(context) // len(mask), 1))
        for layer in self.encoder:
            context = layer(context, position, allowed)
        return self.global_saliency(context, local), context

    def _output(
        self,
        heads: Heads,
        anchors: AnchorOutput | None,
        saliency: Tensor,
        stretch: Tensor,
        training: TrainingParts | None,
    ) -> SgDetrOutput:
        iou_logits = heads.iou_logits[-1] if self.settings.iou_head else None
        spans = heads.spans_cxw[-1] * stretch[:, None, None]
        last = LayerOutput(heads.logits[-1].unsqueeze(-1), spans)
        scores = detection_scores(heads.logits[-1], iou_logits, 0.5)
        raw = None
        if not self.training:
            raw = RawDetections(heads.logits[-1], spans, iou_logits)
            if anchors is not None:
                lowest = torch.finfo(anchors.logits.dtype).min
                raw.anchor_logits = anchors.logits.masked_fill(~anchors.exists, lowest)
                raw.anchor_centerness = anchors.centerness.masked_fill(~anchors.exists, lowest)
                raw.anchor_spans_cxw = anchors.spans_cxw * (anchors.unit * stretch)[:, None, None]
        return SgDetrOutput(last, spans, scores, saliency, training=training, raw=raw)

    def _initialise(self) -> None:
        """Published initial weights of feed-forward blocks, MLPs and projections."""
        pooling = set(self.pooling.modules())
        for module in self.modules():
            if isinstance(module, FeedForward) and module not in pooling:
                gain = nn.init.calculate_gain("leaky_relu", 0.25)
                nn.init.xavier_uniform_(module.expand.weight, gain)
                nn.init.xavier_uniform_(module.contract.weight)
                nn.init.zeros_(module.expand.bias)
                nn.init.zeros_(module.contract.bias)
            elif isinstance(module, Mlp):
                _xavier([layer for layer in module if isinstance(layer, nn.Linear)])
        for projection in (self.projections.video, self.projections.text):
            _xavier([layer.linear for layer in projection])  # type: ignore[misc]
        for part in self.modules():
            if isinstance(part, SgDecoder):
                for mlp in (part.refinement, part.span_head):
                    _zero(mlp)
            elif isinstance(part, QuerySelector):
                _zero(part.span_head)


def _xavier(layers: list[nn.Linear]) -> None:
    """Xavier with the gain of ReLU for all but the last layer, biases 0."""
    for i, layer in enumerate(layers):
        gain = math.sqrt(2.0) if i + 1 < len(layers) else 1.0
        nn.init.xavier_uniform_(layer.weight, gain)
        nn.init.zeros_(layer.bias)


def _zero(mlp: Mlp) -> None:
    """The last layer starts at zero: at first every span stays where it is."""
    nn.init.zeros_(mlp[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(mlp[-1].bias)  # type: ignore[arg-type]
