"""Settings of SG-DETR, its presets and its search space.

`SgDetrSettings` has the published values. ``preset`` names the values that an absent key has:
``released`` those, ``robust`` (the default) those without three published quirks. A written key
always wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mrmodel.config.base import Count, NonNegative, Positive, Section
from mrmodel.config.postprocess import VALIDATION, AnchorSelection, FusionSettings
from mrmodel.config.search_space import Choice, FloatRange, SearchSpace, Value
from mrmodel.models.settings import SUPPRESSION, DropRate, PresetSection

OpenShare = Annotated[float, Field(gt=0.0, lt=1.0)]


class MatchSettings(Section):
    """Weights of the matching cost: L1 of (centre, width), -gIoU, -p, -IoU."""

    span: NonNegative = 10.0
    giou: NonNegative = 1.0
    label: NonNegative = 4.0
    iou: NonNegative = 1.0


class LossWeights(Section):
    """Weights of the losses.

    The first five are those of saliency and of the decoder's four terms; `selector` and `auxiliary`
    multiply the decoder's weights for the selected positions and the auxiliary queries.
    """

    saliency: NonNegative = 1.0
    span: NonNegative = 10.0
    giou: NonNegative = 1.0
    label: NonNegative = 5.0
    iou: NonNegative = 1.0
    selector: NonNegative = 0.5
    auxiliary: NonNegative = 0.5
    anchor_label: NonNegative = 2.0
    anchor_span: NonNegative = 0.1
    anchor_giou: NonNegative = 2.0
    anchor_centerness: NonNegative = 0.5
    alignment: NonNegative = 1.0
    moment: NonNegative = 3.0


class LossSettings(Section):
    """Losses: their weights, the class weight of unmatched queries, the margin of clip pairs."""

    weights: LossWeights = LossWeights()
    background_weight: Positive = 0.1
    margin: NonNegative = 0.15


# The fusion of the published runs on QVHighlights; other rounding and limits are in its preset.
RELEASED_VALIDATION = VALIDATION.model_copy(
    update={
        "anchors": AnchorSelection(top_k=10_000, nms_iou=0.75, keep=10, min_score=0.01),
        "fusion": FusionSettings(
            enabled=True, conf="avg", iou_thr=0.8, weights=[1.0, 2.5], skip=0.1
        ),
    }
)


class SgDetrSettings(PresetSection):
    """SG-DETR (docs/models/sg_detr.md).

    Attributes:
        hidden: width d of all layers, a multiple of `heads` and of 4.
        ffn: width of the feed-forward blocks.
        projection_layers: (LayerNorm, dropout, Linear) blocks from features to `hidden`.
        anchor_head_layers: convolutions in each of the anchor head's two towers.
        drop_path: probability of dropping a residual branch for a whole sample.
        prior: probability of a moment that the class heads start with.
        highlights_only: no windows to learn from (TVSum, YouTube-HL): the detector does not exist.
        saliency_guided: local saliency gates the cross attention.
        global_saliency: the saliency amplifier and the global score exist.
        iou_head: predict the IoU of each window, match and rank by it.
        query_selection: queries start at the best positions of the pyramid; false: at learned
            references.
        anchor_head: there is an anchor head, whose windows are fused with the decoder's.
        anchor_topk: nearest anchors of each level that are candidates for a window.
        auxiliary_queries: positive anchors are decoder queries in training.
        alignment: moment and sentence encoders and their two losses, in training.
        legacy_padding: as published, pad videos with valid zero clips to a multiple of four, and
            let padding leak through the convolutions and take part as anchors.
        legacy_next_negative: as published, the negative sentence is that of the next sample, or
            none.
        legacy_anchor_unit: as published, anchors count two seconds a clip, whatever its length,
            and true windows are cut to whole seconds for them.
        legacy_rank_axis: as in the published code, the rank loss of a single sample without a
            negative sentence vanishes.
    """

    ROBUST: ClassVar[Mapping[str, Any]] = {
        "legacy_padding": False,
        "legacy_next_negative": False,
        "legacy_anchor_unit": False,
    }
    preset: Literal["released", "robust"] = "robust"  # type: ignore[assignment]
    hidden: Annotated[int, Field(ge=8, le=65_536, multiple_of=4)] = 256
    heads: Count = 8
    ffn: Count = 1024
    projection_layers: Annotated[int, Field(ge=1, le=3)] = 2
    pooling_layers: Count = 2
    cross_attention_layers: Count = 2
    encoder_layers: Count = 3
    decoder_layers: Count = 3
    anchor_head_layers: Count = 3
    queries: Count = 25
    dropout: DropRate = 0.1
    drop_path: DropRate = 0.15
    input_dropout: DropRate = 0.5
    prior: OpenShare = 0.35
    highlights_only: bool = False
    saliency_guided: bool = True
    global_saliency: bool = True
    iou_head: bool = True
    query_selection: bool = True
    anchor_head: bool = True
    auxiliary_queries: bool = True
    alignment: bool = True
    anchor_topk: Count = 12
    match: MatchSettings = MatchSettings()
    loss: LossSettings = LossSettings()
    legacy_padding: bool = True
    legacy_next_negative: bool = True
    legacy_anchor_unit: bool = True
    legacy_rank_axis: bool = False

    @model_validator(mode="after")
    def _no_contradiction(self) -> SgDetrSettings:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        if self.auxiliary_queries and not self.anchor_head:
            raise ValueError("auxiliary_queries needs anchor_head: true")
        return self

    @property
    def has_anchors(self) -> bool:
        """There is an anchor head."""
        return self.anchor_head and not self.highlights_only

    @property
    def drop(self) -> float:
        """Residual branches are dropped for whole samples, with this probability."""
        return self.drop_path

    @property
    def text_positions(self) -> bool:
        """Tokens have no positions; the released checkpoints hold an unused table of them."""
        return False

    @property
    def max_tokens(self) -> int:
        """Not read, as there are no text positions."""
        return 0


_WINDOWS: dict[str, list[Value]] = {"highlights_only": [False]}
_ANCHORS: dict[str, list[Value]] = {**_WINDOWS, "anchor_head": [True]}
_FUSION: dict[str, list[Value]] = {**_ANCHORS, "postprocess.fusion.enabled": [True]}

# Loss weights relative to that of the span loss, regularisation, and the schedule.
SEARCH_SPACE: SearchSpace = {
    "loss.weights.saliency": FloatRange(low=0.3, high=3.0, log=True),
    "loss.weights.giou": FloatRange(low=0.3, high=5.0, log=True, when=_WINDOWS),
    "loss.weights.label": FloatRange(low=2.0, high=8.0, when=_WINDOWS),
    "loss.weights.iou": FloatRange(
        low=0.3, high=5.0, log=True, when={**_WINDOWS, "iou_head": [True]}
    ),
    "loss.weights.auxiliary": FloatRange(
        low=0.1, high=2.0, log=True, when={**_ANCHORS, "auxiliary_queries": [True]}
    ),
    "loss.weights.anchor_label": FloatRange(low=0.5, high=8.0, log=True, when=_ANCHORS),
    "loss.weights.anchor_span": FloatRange(low=0.03, high=1.0, log=True, when=_ANCHORS),
    "loss.weights.moment": FloatRange(low=0.3, high=6.0, log=True, when={"alignment": [True]}),
    "loss.background_weight": FloatRange(low=0.05, high=0.3, when=_WINDOWS),
    "drop_path": FloatRange(low=0.0, high=0.3),
    "anchor_topk": Choice(choices=[6, 9, 12, 18], when=_ANCHORS),
    "train.run.lr": FloatRange(low=1e-4, high=8e-4, log=True),
    "train.weight_decay": FloatRange(low=1e-4, high=1e-1, log=True),
}

# On stored detections: how the windows of decoder and anchors become one list.
POST_HOC_SPACE: SearchSpace = {
    "postprocess.alpha": FloatRange(low=0.2, high=0.8, when={**_WINDOWS, "iou_head": [True]}),
    "postprocess.fusion.iou_thr": FloatRange(low=0.5, high=0.95, when=_FUSION),
    "postprocess.fusion.weights.1": FloatRange(low=0.2, high=4.0, log=True, when=_FUSION),
    "postprocess.fusion.conf": Choice(choices=["avg", "max"], when=_FUSION),
    **SUPPRESSION,
}
