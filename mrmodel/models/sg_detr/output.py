"""What SG-DETR gives besides windows and clip scores: the parts that its losses and tuning read.

Shape letters beyond those of types.py: ``K`` decoder layers, ``A`` anchors of all levels, ``S``
slots of a group of queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mrmodel.config.postprocess import SYSTEMS, PostprocessConfig
from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sg_detr.fusion import windows_of
from mrmodel.models.sg_detr.host_inputs import HostInputs
from mrmodel.spans import xx_to_cxw
from mrmodel.types import ModelOutput


@dataclass(slots=True)
class Heads:
    """Predictions of one group of queries after each decoder layer, float32.

    Attributes:
        logits: (K, B, S) of being a moment.
        spans_cxw: (K, B, S, 2) in [0, 1].
        iou_logits: (K, B, S) of the IoU with the own true window; without IoU head `logits` again.
    """

    logits: Tensor
    spans_cxw: Tensor
    iou_logits: Tensor

    def followed_by(self, other: Heads) -> Heads:
        """The layers of both, of the same number of queries."""
        return Heads(
            torch.cat((self.logits, other.logits)),
            torch.cat((self.spans_cxw, other.spans_cxw)),
            torch.cat((self.iou_logits, other.iou_logits)),
        )

    def split(self, sizes: list[int]) -> list[Heads]:
        """Heads of consecutive groups of queries."""
        columns = (self.logits, self.spans_cxw, self.iou_logits)
        parts = zip(*(torch.split(column, sizes, 2) for column in columns), strict=True)
        return [Heads(*part) for part in parts]


@dataclass(slots=True)
class AnchorOutput:
    """Predictions of the anchor head, float32.

    Attributes:
        logits, centerness: (B, A) logits.
        regression: (B, A, 2) outputs that `AnchorGrid.decode` reads.
        spans_cxw: (B, A, 2) in anchor units, not clipped; a width can be below zero.
        exists: (B, A) bool.
        unit: (B,) an anchor unit as a fraction of each video.
    """

    logits: Tensor
    centerness: Tensor
    regression: Tensor
    spans_cxw: Tensor
    exists: Tensor
    unit: Tensor


@dataclass(slots=True)
class Alignment:
    """What the alignment losses read.

    Attributes:
        moment, non_moment: (B, d) tokens that read the relevant, the other clips.
        clips: (B, L, d) states of the clips, 0 at padding.
        sentence: (B, d).
    """

    moment: Tensor
    non_moment: Tensor
    clips: Tensor
    sentence: Tensor


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
        host: truth and random choices.
        mask, labels: (B, L) valid clips and their ratings, padded as the model pads.
        local, saliency: (B, L) local and global scores.
        negative_local, negative_global: (B, L) those of the negative sentence, where
            `host.has_negative`.
        moments: heads of the moment queries.
        selector: one layer of heads of the selected positions.
        auxiliary, auxiliary_queries: heads of the auxiliary queries, and what they must answer.
        anchors: the anchor head.
        alignment: see `Alignment`.
    """

    host: HostInputs
    mask: Tensor
    labels: Tensor
    local: Tensor
    saliency: Tensor
    negative_local: Tensor
    negative_global: Tensor
    moments: Heads | None = None
    selector: Heads | None = None
    auxiliary: Heads | None = None
    auxiliary_queries: LabelledQueries | None = None
    anchors: AnchorOutput | None = None
    alignment: Alignment | None = None

    @property
    def anchor_truth(self) -> PaddedWindows:
        """The true windows as the anchors know them, as fractions."""
        assert self.anchors is not None
        spans = xx_to_cxw(self.host.anchor_spans) * self.anchors.unit[:, None, None]
        return PaddedWindows(spans, self.host.window_valid)


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
