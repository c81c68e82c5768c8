"""Settings of SG-DETR and its search space: the paper's values or ours, and every ablation switch.

``preset`` names the values that an absent key has: ``paper`` reads the paper literally wherever it
is clear, ``robust`` departs from it in the values of `DEPARTURES`. A written key always wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mrmodel.config.base import Count, NonNegative, Positive, Section, Share
from mrmodel.config.postprocess import VALIDATION
from mrmodel.config.search_space import Choice, FloatRange, IntRange, SearchSpace, Value
from mrmodel.losses.highlight import ClipScoreSettings
from mrmodel.models.settings import SUPPRESSION, PresetSection, SizeSettings

Weight = NonNegative
OpenShare = Annotated[float, Field(gt=0.0, lt=1.0)]


class LocalSettings(Section):
    """Local saliency, alpha * cosine + beta (section 3.3).

    Attributes:
        space: ``raw``: clips and tokens come in one space, the cosine is theirs; ``projected``: it
            is taken between the projections to the hidden width.
        first_channel: with ``raw``, where in a clip row the channels begin that share the space
            of the tokens.
        alpha, beta: first values of the two learned scalars.
    """

    space: Literal["raw", "projected"] = "raw"
    first_channel: Annotated[int, Field(ge=0)] = 0
    alpha: Positive = 10.0
    beta: float = 0.0


class PoolSettings(Section):
    """Sentence vector (section 3.2): `query` starts it, `residual_mean` adds the mean token."""

    layers: Count = 2
    query: Literal["mean", "learned", "cls"] = "mean"
    ffn: bool = True
    residual_mean: bool = True


class SgcaSettings(Section):
    """Saliency-guided cross attention (section 3.4); gate ``none`` is plain cross attention."""

    layers: Count = 2
    gate: Literal["clip", "pair", "pair_renorm", "none"] = "clip"
    detach_gate: bool = False


class EncoderSettings(Section):
    """Context encoder (section 3.5)."""

    layers: Count = 3


class GsmSettings(Section):
    """Global saliency module (section 3.6); off: global saliency is the local one."""

    enabled: bool = True
    detach_in_mr: bool = False


class SelectorSettings(Section):
    """Query selector (section 4.2). `enabled` null: on unless the detector is ``dab``.

    `width`: ``learned``, or the fixed width of all proposals as a fraction of the video.
    """

    enabled: bool | None = None
    content: Literal["learned", "token"] = "learned"
    width: Literal["learned"] | OpenShare = "learned"


class DecoderSettings(Section):
    """Decoder (section 4.6)."""

    layers: Count = 3
    look_forward: Literal["once", "twice"] = "twice"
    modulate: bool = True
    share_heads: bool = True


class MatchSettings(Section):
    """Matching cost (section 4.7): class cost, and the weights of its three terms.

    `cls`: ``sdet`` is -p^a IoU^(1-a), ``additive`` -p - mu IoU, ``prob`` -p, ``focal`` DINO's.
    Null: ``sdet`` with an IoU head, else ``prob``. `alpha`: the exponent of ``sdet``.
    """

    cls: Literal["sdet", "additive", "prob", "focal"] | None = None
    alpha: Share = 0.5
    mu: NonNegative = 1.0
    l1: Weight = 10.0
    giou: Weight = 1.0
    ce: Weight = 5.0


class DenoisingSettings(Section):
    """Contrastive denoising queries (section 4.3). `enabled` null: on unless ``dab``.

    `number` is the number of queries that ``dynamic`` shares out among the groups.
    """

    enabled: bool | None = None
    groups: Count = 5
    group_mode: Literal["fixed", "dynamic"] = "fixed"
    number: Count = 100
    noise_scale: Annotated[float, Field(gt=0.0, le=2.0)] = 0.4
    content: Literal["shared", "pos_neg"] = "shared"
    sees_match: bool = True


class AtssSettings(Section):
    """Anchor head (section 4.1); it exists in the detector ``hybrid`` only.

    `widths` are the anchor widths in clips of the layout ``multi_width``.
    """

    layout: Literal["pyramid", "multi_width"] = "pyramid"
    levels: Count = 5
    anchor_scale: Positive = 4.0
    widths: list[Positive] = Field(default=[2.0, 4.0, 8.0, 16.0, 32.0, 64.0], min_length=1)
    topk: Count = 9
    stacked_convs: Count = 1
    decode: Literal["delta", "ltrb"] = "delta"
    centerness_pow: Positive = 0.5
    cls: Literal["focal", "bce"] = "focal"
    layer_scale: bool = False


class AuxSettings(Section):
    """Positive anchors as auxiliary decoder queries (section 4.4). `enabled` null: with ATSS."""

    enabled: bool | None = None
    max: Count = 50
    pad: Literal["mask", "negatives"] = "mask"
    ref: Literal["anchor", "decoded"] = "anchor"
    with_feat: bool = False
    weight: Weight = 1.0


class LossWeights(Section):
    """Lambdas: the terms of the detection losses, then the four groups of eq. 15."""

    l1: Weight = 10.0
    giou: Weight = 1.0
    ce: Weight = 5.0
    iou: Weight = 1.0
    centerness: Weight = 1.0
    detr: Weight = 1.0
    atss: Weight = 1.0
    hl: Weight = 1.0
    aux: Weight = 1.0


class ClassLossSettings(Section):
    """Class loss of the queries (section 5.3): kind, weight of unmatched ones, what it is over."""

    kind: Literal["bce", "focal", "qfl"] = "bce"
    eos: Positive = 0.1
    norm: Literal["queries", "gt"] = "queries"


class HighlightSettings(ClipScoreSettings):
    """Highlight losses (section 5.2); `on` lists the scores that they judge."""

    on: list[Literal["local", "global"]] = Field(default=["local", "global"], min_length=1)


class AlignSettings(Section):
    """Alignment losses of moments and sentences (section 5.5)."""

    enabled: bool = True
    tau: Positive = 1.0
    bce_frames: Literal["split", "shared"] = "split"
    bce_scale: bool = True


class LossSettings(Section):
    """All losses; `weights` are the lambdas."""

    weights: LossWeights = LossWeights()
    cls: ClassLossSettings = ClassLossSettings()
    smooth_l1_beta: NonNegative = 1.0
    iou_target: Literal["max", "matched"] = "max"
    hl: HighlightSettings = HighlightSettings()
    align: AlignSettings = AlignSettings()


# Windows that overlap as the fusion library's own example has it; ours is stricter.
PAPER_VALIDATION = VALIDATION.model_copy(
    update={"fusion": VALIDATION.fusion.model_copy(update={"iou_thr": 0.55})}
)

# Where we would depart from the literal reading (section 12: rows 10, 16, 20, 21, 22).
DEPARTURES: dict[str, Any] = {
    "loss": {
        "smooth_l1_beta": 0.1,
        "hl": {"rctl_norm": "active", "neg_reduction": "mean"},
        "align": {"tau": 0.07},
    },
}


class SgDetrSettings(PresetSection, SizeSettings):
    """SG-DETR; section numbers are those of its design, kept in docs/models/sg_detr.md.

    Attributes:
        use_tef: read the temporal end-points, the last two channels of a clip row.
        drop: what a residual branch loses in training: whole samples (``path``) or units.
        detector: ``dab``: learned references; ``dino``: selector, denoising; ``hybrid``: dino with
            the anchor head, auxiliary queries and fusion.
        queries: moment queries Q.
        iou_head: predict the IoU of each window, and rank by it too.
        highlights_only: no windows to learn from (TVSum, YouTube-HL): the detector does not exist.
    """

    ROBUST: ClassVar[Mapping[str, Any]] = DEPARTURES
    drop: Literal["path", "unit"] = "path"
    use_tef: bool = True
    local: LocalSettings = LocalSettings()
    pool: PoolSettings = PoolSettings()
    sgca: SgcaSettings = SgcaSettings()
    encoder: EncoderSettings = EncoderSettings()
    gsm: GsmSettings = GsmSettings()
    detector: Literal["dab", "dino", "hybrid"] = "hybrid"
    queries: Count = 25
    qs: SelectorSettings = SelectorSettings()
    decoder: DecoderSettings = DecoderSettings()
    iou_head: bool = True
    match: MatchSettings = MatchSettings()
    dn: DenoisingSettings = DenoisingSettings()
    atss: AtssSettings = AtssSettings()
    aux: AuxSettings = AuxSettings()
    loss: LossSettings = LossSettings()
    highlights_only: bool = False

    @model_validator(mode="after")
    def _no_contradiction(self) -> SgDetrSettings:
        if self.sgca.gate.startswith("pair") and self.local.space != "raw":
            raise ValueError(f"sgca.gate {self.sgca.gate!r} needs local.space 'raw'")
        if self.detector == "dab":
            for name, part in (("dn", self.dn), ("qs", self.qs)):
                if part.enabled:
                    raise ValueError(f"{name}.enabled needs detector 'dino' or 'hybrid'")
        if self.detector != "hybrid" and self.aux.enabled:
            raise ValueError("aux.enabled needs the anchors of detector 'hybrid'")
        if self.match.cls in ("sdet", "additive") and not self.iou_head:
            raise ValueError(f"match.cls {self.match.cls!r} needs iou_head: true")
        return self

    @property
    def uses_selector(self) -> bool:
        """Queries start from the clips rather than from learned references."""
        return self.detector != "dab" and self.qs.enabled is not False

    @property
    def uses_denoising(self) -> bool:
        """Training has denoising queries."""
        return self.detector != "dab" and self.dn.enabled is not False

    @property
    def uses_anchors(self) -> bool:
        """There is an anchor head."""
        return self.detector == "hybrid" and not self.highlights_only

    @property
    def uses_auxiliary(self) -> bool:
        """Training has auxiliary queries."""
        return self.uses_anchors and self.aux.enabled is not False

    @property
    def class_cost(self) -> str:
        """The class cost of the matching."""
        return self.match.cls or ("sdet" if self.iou_head else "prob")


_HYBRID: dict[str, list[Value]] = {"detector": ["hybrid"], "highlights_only": [False]}
_DENOISING: dict[str, list[Value]] = {
    "detector": ["dino", "hybrid"],
    "dn.enabled": [True, None],
    "highlights_only": [False],
}
_WINDOWS: dict[str, list[Value]] = {"highlights_only": [False]}
_FUSION: dict[str, list[Value]] = {**_HYBRID, "postprocess.fusion.enabled": [True]}

# Loss weights relative to that of the span loss, noise of the denoising queries, and the schedule.
SEARCH_SPACE: SearchSpace = {
    "loss.weights.iou": FloatRange(
        low=0.3, high=5.0, log=True, when={**_WINDOWS, "iou_head": [True]}
    ),
    "loss.weights.ce": FloatRange(low=2.0, high=8.0, when=_WINDOWS),
    "loss.weights.hl": FloatRange(low=0.3, high=3.0, log=True),
    "loss.weights.aux": FloatRange(
        low=0.1, high=3.0, log=True, when={**_HYBRID, "aux.enabled": [True, None]}
    ),
    "loss.weights.atss": FloatRange(low=0.3, high=3.0, log=True, when=_HYBRID),
    "dn.noise_scale": FloatRange(low=0.2, high=0.8, when=_DENOISING),
    "dn.groups": IntRange(low=2, high=8, when={**_DENOISING, "dn.group_mode": ["fixed"]}),
    "loss.smooth_l1_beta": Choice(choices=[0.0, 0.05, 0.1, 1.0], when=_WINDOWS),
    "loss.cls.eos": FloatRange(low=0.05, high=0.3, when=_WINDOWS),
    "atss.anchor_scale": Choice(choices=[2.0, 3.0, 4.0], when=_HYBRID),
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
