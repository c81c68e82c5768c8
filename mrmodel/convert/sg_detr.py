"""What an import of SG-DETR's released checkpoints needs beside its table of parameter names.

They hold no options of the model: sizes follow from tensor shapes, all else is the configuration of
the published runs. Their trainer's other configurations are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mrmodel import presets
from mrmodel.config.postprocess import PostprocessConfig
from mrmodel.config.schema import Config, parse_config
from mrmodel.convert.settings import SIGNATURE_KEYS, Setting, Shapes, count_layers, size_of
from mrmodel.errors import CheckpointError
from mrmodel.files import parse_yaml

# Part of a tensor's name -> what only other configurations of the published code have.
_OTHERS = {
    "dummy_encoder": "dummy tokens",
    "input_aud_proj": "audio",
    "audio_merger": "audio",
    "dn_label_enc": "denoising queries",
    "mr2hd": "the moment-to-highlight module",
}
# The published YouTube Highlights features have clips of two seconds; our preset has one.
_CLIP_LEN_S = {"youtube_hl": 2.0}
# Protocols of data sets without windows.
_HIGHLIGHTS = ("tvsum", "youtube_hl")
# Sizes that no shape shows, in all published runs.
_HEADS = 8
_SELECTED_QUERIES = 25

_ANCHORS = "aux_det_head.anchor_generator.cell_anchors."
# Anchor sizes and strides of the four pyramid levels, in clips.
_LEVELS = ((4.0, 0.5), (16.0, 1.0), (32.0, 2.0), (64.0, 4.0))


def sg_detr_settings(shapes: Shapes) -> dict[str, Any]:
    """Settings ``models.sg_detr`` of a released checkpoint.

    Heads, and the queries that are selected from the clips, show in no shape: they are those of the
    published runs. Files of data sets without windows (TVSum, YouTube Highlights) have learned
    queries in place of the selector.

    Args:
        shapes: published names of the tensors and their shapes.

    Raises:
        CheckpointError: the file is of a configuration that no released checkpoint has, or a tensor
            that determines a size is missing.
    """
    _check_configuration(shapes)
    windows = any(name.startswith("query_selector.") for name in shapes)
    queries = _SELECTED_QUERIES
    if not windows:
        queries = size_of(shapes, "main_det_head.label_enc.weight", 0)
    return {
        "preset": "released",
        "hidden": size_of(shapes, SIGNATURE_KEYS["sg_detr"], 0),
        "heads": _HEADS,
        "ffn": size_of(shapes, "det_encoder.encoder.layers.0.ffn.mapping.0.weight", 0),
        "projection_layers": count_layers(shapes, "input_vid_proj.linear_mapper."),
        "pooling_layers": count_layers(shapes, "local_saliency_head.sentence_pooling.layers."),
        "cross_attention_layers": count_layers(shapes, "txt2vis_sal_encoder.t2v_encoder.layers."),
        "encoder_layers": count_layers(shapes, "det_encoder.encoder.layers."),
        "decoder_layers": count_layers(shapes, "main_det_head.decoder.layers."),
        "queries": queries,
        "highlights_only": not windows,
    }


def infer_sg_detr(shapes: Shapes, protocol: str) -> list[Setting]:
    """`sg_detr_settings` and those of the published run on a data set, each with its source.

    Raises:
        CheckpointError: see `sg_detr_settings`; or the file has windows and the data set has none,
            or the other way round.
    """
    values = sg_detr_settings(shapes)
    if values["highlights_only"] != (protocol in _HIGHLIGHTS):
        kind = "no query selector, so it is" if values["highlights_only"] else "a query selector"
        raise CheckpointError(
            f"has {kind}{' of TVSum or YouTube Highlights' if values['highlights_only'] else ''}, "
            f"and the data set is {protocol}; --dataset names another one"
        )
    of_run = dict(_published(protocol).models["sg_detr"])
    of_run = {name: value for name, value in of_run.items() if name not in values}
    published = {"preset", "heads", *of_run} | (set() if values["highlights_only"] else {"queries"})
    return [
        Setting(name, value, "published value" if name in published else "shapes")
        for name, value in (values | of_run).items()
    ]


def published_limits(protocol: str) -> dict[str, Any]:
    """``clip_len_s``, ``max_clips`` and ``max_tokens`` of the published run on a data set."""
    features = _published(protocol).features
    return {
        "clip_len_s": _CLIP_LEN_S.get(protocol, features.clip_len_s),
        "max_clips": features.max_clips,
        "max_tokens": features.max_tokens,
    }


def published_postprocess(protocol: str) -> PostprocessConfig:
    """Post-processing of the published run on a data set."""
    return _published(protocol).postprocess


def _published(protocol: str) -> Config:
    """The preset of a data set, which has the values of the published run."""
    return parse_config(parse_yaml(presets.render(f"{protocol}_sg_detr")))


def without_anchors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without the anchors of the four levels, which are no parameters.

    An anchor is its first and last clip relative to the position i of its level, (1, 2): the anchor
    of size s at stride t begins at t/2 - (s - 1)/2 and ends at t/2 + (s - 1)/2.

    Raises:
        CheckpointError: an anchor of another size.
    """
    for level, (size, stride) in enumerate(_LEVELS):
        name = f"{_ANCHORS}{level}"
        expected = [[(stride - size + 1) / 2, (stride + size - 1) / 2]]
        if name in tensors and tensors[name].tolist() != expected:
            raise CheckpointError(
                f"{name} is {tensors[name].tolist()}, expected {expected}: the anchors of the "
                f"released checkpoints have 4, 16, 32 and 64 clips"
            )
    dropped = {f"{_ANCHORS}{level}" for level in range(len(_LEVELS))}
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}


def _check_configuration(shapes: Shapes) -> None:
    for name in shapes:
        for part, what in _OTHERS.items():
            if part in name.split("."):
                raise CheckpointError(
                    f"has {name}: it was trained with {what}, which no released checkpoint of "
                    "sg_detr has and which is not known here"
                )
