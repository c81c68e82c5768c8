"""Settings that the DETR-style models share; the defaults are the published values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, model_validator

from mrmodel.config.base import Count, NonNegative, Positive, Section
from mrmodel.config.search_space import Choice, FloatRange, SearchSpace, Value

DropRate = Annotated[float, Field(ge=0.0, lt=1.0)]


class LayerSettings(Protocol):
    """Settings that a transformer layer reads; `drop` is explained at `SizeSettings`."""

    @property
    def hidden(self) -> int: ...  # noqa: D102
    @property
    def heads(self) -> int: ...  # noqa: D102
    @property
    def ffn(self) -> int: ...  # noqa: D102
    @property
    def dropout(self) -> float: ...  # noqa: D102
    @property
    def drop(self) -> Literal["path", "unit"] | float: ...  # noqa: D102


class ProjectionSettings(Protocol):
    """Settings that the input projections read; explained at `SizeSettings`."""

    @property
    def hidden(self) -> int: ...  # noqa: D102
    @property
    def input_dropout(self) -> float: ...  # noqa: D102
    @property
    def projection_layers(self) -> int: ...  # noqa: D102
    @property
    def text_positions(self) -> bool: ...  # noqa: D102
    @property
    def max_tokens(self) -> int: ...  # noqa: D102


class PresetSection(Section):
    """A section whose absent keys take their values from a preset; a written key always wins.

    Attributes:
        preset: ``paper`` follows the paper literally wherever it is clear; ``robust`` departs from
            it in the values of `ROBUST`.
    """

    ROBUST: ClassVar[Mapping[str, Any]] = {}
    preset: Literal["paper", "robust"] = "paper"

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        default = cls.model_fields["preset"].default
        if isinstance(given, Mapping) and given.get("preset", default) == "robust":
            return _merged(cls.ROBUST, given)
        return given


def _merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Recursive merge: `given` over `base`."""
    merged = dict(base) | dict(given)
    for key in base.keys() & given.keys():
        if isinstance(base[key], Mapping) and isinstance(given[key], Mapping):
            merged[key] = _merged(base[key], given[key])
    return merged


class MatcherWeights(Section):
    """Weights of the matching cost: 10 L1 - 1 gIoU - 4 p(foreground)."""

    span: NonNegative = 10.0
    giou: NonNegative = 1.0
    foreground: NonNegative = 4.0


class LossWeights(Section):
    """Weights of the losses; `contrastive` is used only if the model's `contrastive` is on."""

    span: NonNegative = 10.0
    giou: NonNegative = 1.0
    label: NonNegative = 4.0
    saliency: NonNegative = 1.0
    contrastive: NonNegative = 0.02


class SizeSettings(Section):
    """Sizes and regularisation common to all models.

    Attributes:
        hidden: width d of all layers, a multiple of `heads` and of 4 (sine position codes).
        ffn: width of the feed-forward blocks.
        projection_layers: number of (LayerNorm, dropout, Linear) blocks from features to `hidden`.
        drop: dropout of residual branches: single units (``unit``), or the whole branch of a
            sample (``path``).
        text_positions: learned positions for tokens; off in every published run.
        max_tokens: size of the learned position table, used with `text_positions` only.
    """

    hidden: Annotated[int, Field(ge=8, le=65_536, multiple_of=4)] = 256
    heads: Count = 8
    ffn: Count = 1024
    projection_layers: Annotated[int, Field(ge=1, le=3)] = 2
    dropout: DropRate = 0.1
    drop: Literal["path", "unit"] = "unit"
    input_dropout: DropRate = 0.5
    text_positions: bool = False
    max_tokens: Count = 32

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> SizeSettings:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        return self


class DetrSettings(SizeSettings):
    """`SizeSettings`, layers and losses of Moment-DETR and of the models derived from it.

    Attributes:
        queries: windows predicted for each sample.
        aux_loss: also supervise the earlier decoder layers.
        background_weight: class weight of unmatched queries.
        saliency_margin: margin between the two clips of a pair.
        highlights_only: no window annotations (TVSum, YouTube-HL): saliency loss alone.
        contrastive: alignment of matched queries with the text (off in the published runs),
            with `contrastive_width` channels and `contrastive_temperature`.
    """

    encoder_layers: Count = 2
    decoder_layers: Count = 2
    queries: Count = 10
    aux_loss: bool = True
    background_weight: Positive = 0.1
    saliency_margin: NonNegative = 0.2
    highlights_only: bool = False
    contrastive: bool = False
    contrastive_width: Count = 64
    contrastive_temperature: Positive = 0.07
    matcher: MatcherWeights = MatcherWeights()
    loss: LossWeights = LossWeights()


class MomentDetrSettings(DetrSettings):
    """`DetrSettings` and the settings specific to Moment-DETR.

    Attributes:
        pre_norm: norms before attention and feed-forward instead of after them.
        span_loss: ``l1`` regresses (centre, width); ``ce`` classifies the first and the last clip
            among `max_clips` (unused in the published runs).
        max_clips: number of classes of ``ce``.
        legacy_contrastive_padding: let padded tokens take part in the alignment loss.
    """

    pre_norm: bool = False
    span_loss: Literal["l1", "ce"] = "l1"
    max_clips: Count = 75
    legacy_contrastive_padding: bool = False


class QdDetrSettings(DetrSettings):
    """`DetrSettings` and those of QD-DETR.

    `encoder_layers` is the number of encoder layers and of text-to-video layers alike.

    Attributes:
        legacy_mask_tiling: mask tokens by the padding of other samples, as the published code does.
        legacy_negative_positions: with `text_positions`, a negative sentence keeps the positions
            of the sentence that it replaces.
        legacy_empty_alignment: with `contrastive`, align with an empty token list as published,
            which makes that loss a constant.
    """

    legacy_mask_tiling: bool = False
    legacy_negative_positions: bool = False
    legacy_empty_alignment: bool = False


# Post-hoc: NMS threshold; below 0 nothing is suppressed.
SUPPRESSION: SearchSpace = {
    "postprocess.nms_iou": Choice(
        choices=[-1.0, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9],
        when={"evaluate.mode": ["clean"], "highlights_only": [False]},
    )
}
_WINDOWS: dict[str, list[Value]] = {"highlights_only": [False]}
# Search space shared by the DETR models: weights relative to that of the span loss.
DETR_SPACE: SearchSpace = {
    "loss.giou": FloatRange(low=0.3, high=5.0, log=True, when=_WINDOWS),
    "loss.label": FloatRange(low=1.0, high=8.0, log=True, when=_WINDOWS),
    # {1, 4} in the published QD-DETR runs.
    "loss.saliency": FloatRange(low=0.3, high=6.0, log=True),
    "background_weight": FloatRange(low=0.05, high=0.3, when=_WINDOWS),
    "saliency_margin": FloatRange(low=0.1, high=1.0),
    "train.run.lr": FloatRange(low=5e-5, high=4e-4, log=True),
    "train.weight_decay": FloatRange(low=1e-5, high=1e-2, log=True),
}
