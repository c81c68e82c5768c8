"""Infers the model settings of a published checkpoint.

Sizes follow from tensor shapes. Settings that shapes do not determine (heads, dropout, loss
weights) are read from the options that the published trainers save with the weights; all others
have their published value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from mrmodel.components import MODELS
from mrmodel.config.base import Section, put
from mrmodel.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

# A tensor that identifies the model, most specific model first.
SIGNATURE_KEYS = {
    "video_lights": "feature_refinement.sim_w",
    "qd_detr": "transformer.t2v_encoder.layers.0.self_attn.in_proj_weight",
    "moment_detr": "transformer.decoder.layers.0.multihead_attn.in_proj_weight",
    "sg_detr": "local_saliency_head.sentence_pooling.cls_q",
}
FORMATS = ("auto", *sorted(SIGNATURE_KEYS), "lighthouse")

# Path of a setting -> its published option, or the options whose product it is: VideoLights sums
# several losses into the one on clip scores before weighting it.
OPTIONS = {
    "heads": ("nheads",),
    "dropout": ("dropout",),
    "input_dropout": ("input_dropout",),
    "text_positions": ("use_txt_pos",),
    "aux_loss": ("aux_loss",),
    "background_weight": ("eos_coef",),
    "saliency_margin": ("saliency_margin",),
    "contrastive_temperature": ("temperature",),
    "matcher.span": ("set_cost_span",),
    "matcher.giou": ("set_cost_giou",),
    "matcher.foreground": ("set_cost_class",),
    "loss.span": ("span_loss_coef",),
    "loss.giou": ("giou_loss_coef",),
    "loss.label": ("label_loss_coef",),
    "loss.saliency": ("lw_saliency",),
    "loss.contrastive": ("contrastive_align_loss_coef",),
    "loss.video_text": ("contrastive_align_loss_coef",),
    "loss.task_specific": ("lw_saliency", "cos_sim_loss_coef"),
    "loss.task_coupled": ("lw_saliency", "mr_to_hd_loss_coef"),
    "loss.hard_negative": ("lw_saliency", "hard_pos_neg_loss_coef", "hard_pos_neg_loss"),
    "loss.hard_positive": ("lw_saliency", "hard_pos_neg_loss_coef", "hard_pos_neg_loss"),
}
# VideoLights has convolutional projections.
_CONVOLUTION = "input_vid_proj.0.net.1.conv1d.weight"

# Options that the trainers save although their loss is off.
_CONTRASTIVE = ("contrastive_temperature", "loss.contrastive", "loss.video_text")

# Data sets without windows in training, as named by the published trainers.
_HIGHLIGHT_SETS = ("tvsum", "youtube_highlight", "youtube_uni")


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of an imported model and its source: shapes, an option, or the published value.

    `name` is the path below ``models.<model>``.
    """

    name: str
    value: Any
    source: str


def recognise(shapes: Shapes) -> str:
    """Identify the model by its tensor names.

    Raises:
        CheckpointError: the model is unknown.
    """
    for model, mark in SIGNATURE_KEYS.items():
        if mark in shapes:
            return model
    shown = ", ".join(list(shapes)[:3])
    raise CheckpointError(
        f"no known published layout ({', '.join(sorted(SIGNATURE_KEYS))}) has these tensors: "
        f"{shown} ..."
    )


def infer_settings(model: str, shapes: Shapes, options: Mapping[str, Any]) -> list[Setting]:
    """Settings of a published model, each with its source; omitted ones are as published.

    Args:
        model: a name of `SIGNATURE_KEYS`.
        shapes: published names of the tensors and their shapes.
        options: the options saved with the weights; may be empty.

    Raises:
        CheckpointError: a tensor that determines a size is missing, or a factor of a product is not
            a number.
    """
    section: type[Section] = MODELS.get(model).Settings
    found = {name: Setting(name, value, "shapes") for name, value in _sizes(shapes).items()}
    for name, factors in OPTIONS.items():
        if name not in found and all(option in options for option in factors):
            value = _product(factors, options) if len(factors) > 1 else options[factors[0]]
            found[name] = Setting(name, value, f"option {' x '.join(factors)}")
    if not found["contrastive"].value:
        found = {name: setting for name, setting in found.items() if name not in _CONTRASTIVE}
    if options.get("dset_name") in _HIGHLIGHT_SETS:
        found["highlights_only"] = Setting("highlights_only", True, "option dset_name")
    if found.get("dropout") and found["dropout"].value != default_of(section, "dropout"):
        name, value = "refinement.dropout", default_of(section, "dropout")
        found[name] = Setting(name, value, "published value")  # regardless of the option
    found.setdefault("heads", Setting("heads", default_of(section, "heads"), "published value"))
    return [setting for name, setting in found.items() if _has(section, name)]


def _product(factors: tuple[str, ...], options: Mapping[str, Any]) -> float:
    product = 1.0
    for option in factors:
        if not isinstance(options[option], (int, float)):
            raise CheckpointError(f"{option} is {options[option]!r}; expected a number")
        product *= options[option]
    return product


def nested(settings: list[Setting]) -> dict[str, Any]:
    """Settings as the mapping ``models.<model>`` of params.yaml."""
    tree: dict[str, Any] = {}
    for setting in settings:
        put(tree, setting.name, setting.value)
    return tree


def default_of(section: type[BaseModel], path: str, **chosen: Any) -> Any:
    """The published value of the setting `path`; `chosen` are settings that others depend on."""
    value: Any = section(**chosen)
    for part in path.split("."):
        value = getattr(value, part)
    return value


def legacy_switches(model: str) -> list[Setting]:
    """All options of the model that reproduce published quirks, enabled."""
    fields = MODELS.get(model).Settings.model_fields
    return [Setting(name, True, "--legacy") for name in fields if name.startswith("legacy_")]


def _sizes(shapes: Shapes) -> dict[str, Any]:
    span_outputs = size_of(shapes, "span_embed.layers.2.weight", 0)
    sizes: dict[str, Any] = {
        "hidden": size_of(shapes, "class_embed.weight", 1),
        "ffn": size_of(shapes, "transformer.encoder.layers.0.linear1.weight", 0),
        "encoder_layers": count_layers(shapes, "transformer.encoder.layers."),
        "decoder_layers": count_layers(shapes, "transformer.decoder.layers."),
        "queries": size_of(shapes, "query_embed.weight", 0),
        "projection_layers": count_layers(shapes, "input_vid_proj."),
        "pre_norm": "transformer.encoder.norm.weight" in shapes,
        "span_loss": "l1" if span_outputs == 2 else "ce",
        "contrastive": "contrastive_align_projection_query.weight" in shapes,
        "fusion.layers": count_layers(shapes, "transformer.t2v_encoder.layers."),
        "moment_to_highlight": "saliency_proj_mr.weight" in shapes,
    }
    if span_outputs != 2:
        sizes["max_clips"] = span_outputs // 2
    if _CONVOLUTION in shapes:
        sizes["kernel"] = size_of(shapes, _CONVOLUTION, 2)
    if sizes["contrastive"]:
        sizes["contrastive_width"] = size_of(shapes, "contrastive_align_projection_query.weight", 0)
    if "txt_position_embed.position_embeddings.weight" in shapes:
        sizes["max_tokens"] = size_of(shapes, "txt_position_embed.position_embeddings.weight", 0)
    return sizes


def size_of(shapes: Shapes, name: str, axis: int) -> int:
    """Size of a tensor along `axis`.

    Raises:
        CheckpointError: there is no such tensor, or it has fewer axes.
    """
    if name not in shapes:
        raise CheckpointError(f"{name} is missing, and a size of the model follows from it")
    if len(shapes[name]) <= axis:
        raise CheckpointError(f"{name} is {shapes[name]}, expected {axis + 1} axes or more")
    return shapes[name][axis]


def count_layers(shapes: Shapes, prefix: str) -> int:
    """Number of numbered layers below `prefix`."""
    numbers = {
        name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)
    }
    return sum(number.isdigit() for number in numbers)


def _has(section: type[BaseModel], path: str) -> bool:
    first, _, rest = path.partition(".")
    field = section.model_fields.get(first)
    if field is None or not rest:
        return field is not None
    kind = field.annotation
    return isinstance(kind, type) and issubclass(kind, BaseModel) and _has(kind, rest)
