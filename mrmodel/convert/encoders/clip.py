"""CLIP's published weights, in OpenAI's names or in Hugging Face's, as the set ``clip_b32``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from mrmodel.convert.encoders.recipe import Recipe, TextReading, shapes_of
from mrmodel.convert.encoders.vocabulary import clip_tokenizer
from mrmodel.convert.settings import Shapes, count_layers, size_of
from mrmodel.encoders.networks.clip import ClipConfig, ClipText, ClipVision
from mrmodel.encoders.user_weights import TransformerSizes

# Head width of every published CLIP.
_HEAD = 64
# Scalars, masks, and position ids implied by the sizes.
_LEFT_OUT = re.compile(
    r"(logit_scale|input_resolution|context_length|vocab_size|(.*\.)?attn_mask|.*\.position_ids)$"
)
_RENAMED = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_TRANSPOSED = ("visual.proj", "text_projection")


def networks(config: ClipConfig) -> tuple[nn.Module, ...]:
    """All networks of the set."""
    return ClipVision(config), ClipText(config)


def convert(tensors: Mapping[str, Tensor]) -> tuple[ClipConfig, dict[str, Tensor]]:
    """Rename tensors for `ClipVision` and `ClipText`, and infer the sizes.

    Raises:
        CheckpointError: a tensor that determines a size is missing.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not _LEFT_OUT.match(name):
            converted |= _renamed(name, tensor)
    return _config(shapes_of(converted)), converted


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    new = name
    for pattern, replacement in _RENAMED:
        new = re.sub(pattern, replacement, new)
    if name in _TRANSPOSED:
        tensor = tensor.T.contiguous()
    stem, joined, kind = new.partition(".in_proj_")
    if not joined:
        return {new: tensor}
    thirds = zip("qkv", tensor.chunk(3), strict=True)
    return {f"{stem}.{letter}_proj.{kind}": part.contiguous() for letter, part in thirds}


def _config(shapes: Shapes) -> ClipConfig:
    patch = size_of(shapes, "vision_model.embeddings.patch_embedding.weight", 2)
    positions = size_of(shapes, "vision_model.embeddings.position_embedding.weight", 0)
    return ClipConfig(
        vision=_sizes(shapes, "vision_model"),
        image_size=round((positions - 1) ** 0.5) * patch,
        patch=patch,
        text=_sizes(shapes, "text_model"),
        vocabulary=size_of(shapes, "text_model.embeddings.token_embedding.weight", 0),
        positions=size_of(shapes, "text_model.embeddings.position_embedding.weight", 0),
        projection=size_of(shapes, "text_projection.weight", 0),
    )


def _sizes(shapes: Shapes, part: str) -> TransformerSizes:
    layers = f"{part}.encoder.layers."
    width = size_of(shapes, f"{layers}0.mlp.fc1.weight", 1)
    return TransformerSizes(
        width=width,
        layers=count_layers(shapes, layers),
        heads=max(1, width // _HEAD),
        mlp=size_of(shapes, f"{layers}0.mlp.fc1.weight", 0),
    )


RECIPE = Recipe(
    ClipConfig,
    networks,
    convert,
    TextReading(clip_tokenizer, lambda config: (config.vocabulary,)),
)
