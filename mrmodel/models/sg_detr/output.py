"""What SG-DETR gives besides windows and clip scores: the parts that its losses and tuning read.

Shape letters beyond those of types.py: ``K`` decoder layers, ``A`` anchors of all levels, ``S``
slots of a group of queries.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mrmodel.config.postprocess import SYSTEMS, PostprocessConfig
from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sg_detr.fusion import windows_of
from mrmodel.types import ModelOutput


@dataclass(slots=True)
class Heads:
    """Predictions of one group of queries after each decoder layer, float32.

    Attributes:
        logits: (K, B, S) of being a moment.
        spans_cxw: (K, B, S, 2) in [0, 1].
        iou_logits: (K, B, S) of the IoU with the best true window; None without IoU head.
    """

    logits: Tensor
    spans_cxw: Tensor
    iou_logits: Tensor | None


@dataclass(slots=True)
class AnchorHeads:
    """Predictions of the anchor head, float32; `valid` (B, A) says which anchors exist.

    `spans_cxw` (B, A, 2) are not clipped to [0, 1]; `logits` and `centerness` are (B, A) logits;
    `features` (B, A, d) are the pyramid's rows at the anchors, None where nobody reads them.
    """

    logits: Tensor
    spans_cxw: Tensor
    centerness: Tensor
    features: Tensor | None
    anchors_cxw: Tensor
    valid: Tensor


@dataclass(slots=True)
class AnchorTargets:
    """Which true window an anchor answers for.

    Attributes:
        window: (B, A) int64, index of the true window within its sample; -1 = background.
        centerness: (B, A) float32 target in (0, 1], 0 for background (section 4.1).
    """

    window: Tensor
    centerness: Tensor


@dataclass(slots=True)
class Alignment:
    """What the alignment losses read (section 5.5).

    Attributes:
        moment, non_moment: (B, d) tokens that read the relevant, the other clips.
        sentence: (B, d).
        clips: (B, L, d) states of the clips.
    """

    moment: Tensor
    non_moment: Tensor
    sentence: Tensor
    clips: Tensor


@dataclass(slots=True)
class RawDetections:
    """What `fusion.windows_of` turns into windows; float32, no gradient.

    Attributes:
        logits, spans_cxw, iou_logits: last decoder layer, (B, Q), (B, Q, 2), (B, Q) or None.
        anchor_logits, anchor_centerness: (B, A), or None without anchor head; the lowest finite
            number at anchors that do not exist.
        anchor_spans_cxw: (B, A, 2), or None.
    """

    logits: Tensor
    spans_cxw: Tensor
    iou_logits: Tensor | None = None
    anchor_logits: Tensor | None = None
    anchor_centerness: Tensor | None = None
    anchor_spans_cxw: Tensor | None = None


@dataclass(slots=True)
class TrainingParts:
    """What only the losses read; a part that the settings switch off is None.

    Attributes:
        local: (B, L) local saliency, 0 at padding.
        negative_local, negative_global: (B, L) scores under a sentence of another video.
        has_negative: (B,) bool, such a sentence was in the batch.
        match: heads of the moment queries.
        selector: one layer of heads of the chosen clips, and
        selector_used: (B, Q) bool, slots that hold a clip.
        dn, dn_queries: denoising heads and what they must answer.
        aux, aux_queries: likewise the auxiliary queries.
        anchors, anchor_targets: the anchor head.
        alignment: see `Alignment`.
        idle: 0, attached to the parameters of known queries that this batch has none of; None
            when it has all that the settings ask for.
    """

    local: Tensor
    negative_local: Tensor
    negative_global: Tensor
    has_negative: Tensor
    match: Heads | None = None
    selector: Heads | None = None
    selector_used: Tensor | None = None
    dn: Heads | None = None
    dn_queries: LabelledQueries | None = None
    aux: Heads | None = None
    aux_queries: LabelledQueries | None = None
    anchors: AnchorHeads | None = None
    anchor_targets: AnchorTargets | None = None
    alignment: Alignment | None = None
    idle: Tensor | None = None


@dataclass(slots=True)
class SgDetrOutput(ModelOutput):
    """`ModelOutput` with `training` in training mode and `raw` detections in eval mode.

    Its own windows are those of the decoder.
    """

    training: TrainingParts | None = None
    raw: RawDetections | None = None

    @property
    def systems(self) -> tuple[str, ...]:
        """All, if there are anchors."""
        return () if self.raw is None or self.raw.anchor_logits is None else SYSTEMS

    def candidates(
        self, settings: PostprocessConfig, system: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """The windows that `fusion.windows_of` makes of decoder and anchors."""
        if self.raw is None:  # no detector
            return self.spans_cxw, self.scores
        return windows_of(self.raw, settings, system)
