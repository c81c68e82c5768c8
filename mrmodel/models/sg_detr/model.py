"""SG-DETR (Gordeev et al. 2024), whole: from clips and a sentence to windows and clip scores.

Follows the published code. Read `forward` from top to bottom; docs/models/sg_detr.md has the
picture, and what differs from the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.config.search_space import SearchSpace
from mrmodel.models.base import MomentModel
from mrmodel.models.layers.encoder import EncoderLayer
from mrmodel.models.layers.feed_forward import xavier_chain, xavier_feed_forward
from mrmodel.models.layers.functional import (
    copies_of,
    key_mask,
    xavier_matrices,
)
from mrmodel.models.layers.heads import no_windows
from mrmodel.models.layers.position import clip_positions, repeat_positions
from mrmodel.models.layers.projection import InputProjections
from mrmodel.models.layers.query_groups import seeded_generator
from mrmodel.models.sg_detr.criterion import SgDetrCriterion
from mrmodel.models.sg_detr.cross_attention import TextToVideo
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
        layer = EncoderLayer(s, "prelu")
        xavier_matrices(layer)
        xavier_feed_forward(layer)
        self.encoder = copies_of(layer, s.encoder_layers)
        self.global_saliency = GlobalSaliency(s)
        self.sentence_encoder = SentenceEncoder(s) if s.alignment else None
        self.moment_encoder = MomentEncoder(s) if s.alignment else None
        self.detector = None if s.highlights_only else Detector(s)
        nn.init.normal_(self.modality.weight, std=FIRST_MODALITY)
        for projection in (self.projections.video, self.projections.text):
            xavier_chain(layer.linear for layer in projection)
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
