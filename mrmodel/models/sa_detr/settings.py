"""Settings and search space of SA-DETR: the paper's values or ours, and every ablation switch.

``preset`` selects the values of absent keys: ``paper`` follows the paper literally wherever it is
clear, ``robust`` departs from it in the values of `DEPARTURES`. A written key always wins. Section
numbers refer to docs/models/sa_detr.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mrmodel.config.base import Count, NonNegative, Positive, Section
from mrmodel.config.search_space import Choice, FloatRange, IntRange, SearchSpace, Value
from mrmodel.losses.settings import ClipScoreSettings
from mrmodel.models.settings import PresetSection, SizeSettings

Weight = NonNegative
NoiseScale = Annotated[float, Field(gt=0.0, lt=1.0)]
Stage = Literal["before", "after"]
GaussMode = Literal["mul_logits", "add_log", "none"]


class LayerCounts(Section):
    """Layers of the fusion encoder, of the global block (`encoder`) and of the refiner."""

    fusion: Count = 2
    encoder: Count = 2
    refiner: Count = 2


class VtcSettings(Section):
    """Video-text contrast (section 2.2): `stage` before or after the fusion, temperature."""

    enabled: bool = True
    stage: Stage = "before"
    tau: Positive = 0.07


class CtmSettings(Section):
    """Clip-text matching (section 2.5).

    `legacy_intra_transposed` adds the second half of UniVTG's intra-video term, whose softmax runs
    over the batch at one clip index.
    """

    enabled: bool = True
    stage: Stage = "after"
    tau: Positive = 0.07
    legacy_intra_transposed: bool = False


class SaDetrFusionSettings(Section):
    """Fusion encoder (section 2.3).

    `share`: one set of weights for both directions. `update`: with ``parallel`` a layer attends to
    the previous layer's output of the other stream, with ``independent`` to the projected rows.
    `keys_include_token`: words also attend to the fusion token.
    """

    share: bool = True
    update: Literal["independent", "parallel"] = "independent"
    keys_include_token: bool = True


class LocalBlockSettings(Section):
    """Local block (section 2.7): its input; `include_token` convolves the token too."""

    input: Literal["global", "fused"] = "global"
    include_token: bool = False


class InitSettings(Section):
    """Direct queries (section 2.8).

    `anchors`: initial spans from the fusion token, or ``learned``. `loss`: supervise them; null: if
    they are dynamic. `detach_ref`: no gradient from the refiner to them; null: if `loss` is on.
    """

    anchors: Literal["dynamic", "learned"] = "dynamic"
    loss: bool | None = None
    detach_ref: bool | None = None
    queries: Count = 10


class NoiseSettings(Section):
    """Noise queries of training (section 2.9).

    `mode`: ``none``; ``positive_only``; ``fixed`` with negatives of scale `sigma_p` + `delta`;
    ``curriculum``, whose delta falls to `delta_end`. `band`: the noise of negatives is at least
    `sigma_p`. `center_ref`: what the shift of the centre is relative to.
    """

    mode: Literal["none", "positive_only", "fixed", "curriculum"] = "fixed"
    groups: Count = 5
    sigma_p: NoiseScale = 0.2
    delta: NoiseScale = 0.4
    delta_end: NoiseScale = 0.1
    band: bool = True
    center_ref: Literal["width", "center"] = "width"
    sees_match: bool = True


class AlignSettings(Section):
    """Temporal align (section 2.10): sample points per span, and how far it is widened first."""

    samples: Count = 10
    expand: NonNegative = 0.0


class EnhanceSettings(Section):
    """Span-based enhancement (section 2.10).

    `norm`: weights of the points: their raw scores, or the ``softmax``. `gate`: one number per
    query, or per ``channel``; `scaled`: divide its products by sqrt(d).
    `zero_init`: the branch starts at zero.
    """

    enabled: bool = True
    norm: Literal["none", "softmax"] = "none"
    gate: Literal["scalar", "channel"] = "scalar"
    scaled: bool = False
    zero_init: bool = False


class GaussSettings(Section):
    """Gaussian modulation of the cross attention (section 2.10)."""

    mode: GaussMode = "mul_logits"
    alpha: Positive = 2.0
    pos: Literal["center", "end"] = "center"


class QualitySettings(Section):
    """Quality losses (section 3.2). `margin` null: 0.4 if there are negative noise queries.

    With ``bins``, `w_matched` and `norm` are ignored.
    """

    w_matched: Positive = 1.0
    weighting: Literal["matched", "bins"] = "matched"
    norm: Literal["mean", "sum_per_sample"] = "mean"
    margin: NonNegative | None = None
    on_noise: bool = False


class LocationMatchSettings(Section):
    """Weights of the matching cost (section 3.1)."""

    l1: Weight = 10.0
    giou: Weight = 1.0
    quality_cost: Weight = 0.0


class SaDetrLossSettings(Section):
    """Weights of eqs 7 and 10 (section 3.2).

    `norm`: span losses are divided by the number of windows in the batch (``gt``), or summed over
    the windows of a sample as in the paper (``none``). `aux`: also supervise the earlier layers.
    """

    l1: Weight = 10.0
    giou: Weight = 1.0
    align: Weight = 1.0
    saliency: Weight = 1.0
    moment: Weight = 1.0
    quality: Weight = 1.0
    norm: Literal["gt", "none"] = "gt"
    aux: bool = True


DEFAULT_MARGIN = 0.4
# Where ``robust`` departs from the literal reading (section 9: rows 5, 7, 8, 12).
DEPARTURES: dict[str, Any] = {
    "enhance": {"norm": "softmax", "scaled": True, "zero_init": True},
    "gauss": {"mode": "add_log"},
    "saliency": {"rctl_norm": "active", "neg_reduction": "mean"},
}


class SaDetrSettings(PresetSection, SizeSettings):
    """Settings of SA-DETR.

    Attributes:
        residual: what the cross-attention is added to: the content, or the projected ``query``.
        update: offsets are added in ``logit`` space, or directly and clamped to [0, 1] (``raw``).
        highlights_only: no window annotations (TVSum, YouTube-HL): the model has no moment branch.
    """

    ROBUST: ClassVar[Mapping[str, Any]] = DEPARTURES
    layers: LayerCounts = LayerCounts()
    vtc: VtcSettings = VtcSettings()
    ctm: CtmSettings = CtmSettings()
    fusion: SaDetrFusionSettings = SaDetrFusionSettings()
    local: LocalBlockSettings = LocalBlockSettings()
    init: InitSettings = InitSettings()
    dn: NoiseSettings = NoiseSettings()
    align: AlignSettings = AlignSettings()
    enhance: EnhanceSettings = EnhanceSettings()
    gauss: GaussSettings = GaussSettings()
    residual: Literal["content", "query"] = "content"
    update: Literal["logit", "raw"] = "logit"
    quality: QualitySettings = QualitySettings()
    saliency: ClipScoreSettings = ClipScoreSettings()
    match: LocationMatchSettings = LocationMatchSettings()
    loss: SaDetrLossSettings = SaDetrLossSettings()
    highlights_only: bool = False

    @model_validator(mode="after")
    def _no_contradiction(self) -> SaDetrSettings:
        dn = self.dn
        if dn.sigma_p + dn.delta >= 1.0:
            raise ValueError(
                f"dn.sigma_p {dn.sigma_p} + dn.delta {dn.delta} must be below 1: "
                "a negative of that scale could lose all its width"
            )
        if dn.mode == "curriculum" and dn.delta_end > dn.delta:
            raise ValueError(f"dn.delta_end {dn.delta_end} is above dn.delta {dn.delta}")
        if self.quality.margin is not None and not self.uses_negatives:
            raise ValueError(f"quality.margin needs the negatives that dn.mode {dn.mode!r} lacks")
        if self.quality.on_noise and not self.uses_noise:
            raise ValueError("quality.on_noise needs the noise queries that dn.mode 'none' lacks")
        if self.init.loss and self.init.anchors == "learned":
            raise ValueError("init.loss needs init.anchors 'dynamic': learned ones are no answer")
        if self.init.detach_ref and not self.judges_first_spans:
            raise ValueError("init.detach_ref needs the init.loss: nothing else would teach them")
        return self

    @property
    def uses_noise(self) -> bool:
        """Training has noise queries."""
        return self.dn.mode != "none"

    @property
    def uses_negatives(self) -> bool:
        """There are far noise queries besides the near ones."""
        return self.dn.mode in ("fixed", "curriculum")

    @property
    def judges_first_spans(self) -> bool:
        """The direct spans before the refiner are supervised."""
        return self.init.anchors == "dynamic" and self.init.loss is not False

    @property
    def detaches_first_spans(self) -> bool:
        """The refiner's losses do not reach the direct spans it starts from."""
        return self.judges_first_spans and self.init.detach_ref is not False

    @property
    def margin(self) -> float:
        """Margin by which a near copy's quality must exceed that of the far one."""
        return DEFAULT_MARGIN if self.quality.margin is None else self.quality.margin

    @property
    def reads_words(self) -> bool:
        """Words attend to clips, because the fused words are used."""
        after = [part.enabled and part.stage == "after" for part in (self.vtc, self.ctm)]
        return any(after) or self.enhances

    @property
    def enhances(self) -> bool:
        """Queries attend to the clips of their span before the cross-attention."""
        return self.enhance.enabled and not self.highlights_only

    @property
    def needs_sentence(self) -> bool:
        """A sentence token is pooled from the fused words."""
        return self.enhances or (self.ctm.enabled and self.ctm.stage == "after")

    def delta_at(self, progress: float) -> float:
        """Extra noise scale of far copies at this fraction of the training."""
        if self.dn.mode != "curriculum":
            return self.dn.delta
        return self.dn.delta + (self.dn.delta_end - self.dn.delta) * progress


_WINDOWS: dict[str, list[Value]] = {"highlights_only": [False]}
_NOISE: dict[str, list[Value]] = {
    **_WINDOWS,
    "dn.mode": ["positive_only", "fixed", "curriculum"],
}
_NEGATIVES: dict[str, list[Value]] = {**_WINDOWS, "dn.mode": ["fixed", "curriculum"]}

SEARCH_SPACE: SearchSpace = {
    "loss.align": FloatRange(low=0.1, high=3.0, log=True),
    "loss.saliency": FloatRange(low=0.5, high=6.0),
    "loss.quality": FloatRange(low=0.3, high=3.0, log=True, when=_WINDOWS),
    "quality.w_matched": Choice(
        choices=[1.0, 3.0, 10.0], when={**_WINDOWS, "quality.weighting": ["matched"]}
    ),
    "quality.margin": FloatRange(low=0.2, high=0.6, when=_NEGATIVES, unset=DEFAULT_MARGIN),
    "gauss.mode": Choice(choices=["mul_logits", "add_log", "none"], when=_WINDOWS),
    "gauss.alpha": FloatRange(
        low=1.0, high=6.0, when={**_WINDOWS, "gauss.mode": ["mul_logits", "add_log"]}
    ),
    "dn.sigma_p": FloatRange(low=0.1, high=0.4, when=_NOISE),
    # Bounded so that sigma_p + delta never exceeds 0.95.
    "dn.delta": FloatRange(low=0.2, high=0.55, when=_NEGATIVES),
    "dn.groups": IntRange(low=2, high=8, when=_NOISE),
    "align.samples": Choice(choices=[5, 10, 15, 20], when=_WINDOWS),
    "train.run.lr": FloatRange(low=5e-5, high=4e-4, log=True),
    "train.weight_decay": FloatRange(low=1e-5, high=1e-2, log=True),
}
