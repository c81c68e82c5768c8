"""InternVideo2's published stage-2 checkpoint as the set ``internvideo2_1b``; names are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from mrmodel.convert.encoders.recipe import Recipe, TextReading, shapes_of
from mrmodel.convert.encoders.vocabulary import bert_tokenizer
from mrmodel.convert.settings import Shapes, count_layers, size_of
from mrmodel.encoders.internvideo2 import InternVideo2Config, ProjectedText, ProjectedVision
from mrmodel.encoders.networks.bert import BertSizes
from mrmodel.encoders.networks.internvideo2 import VisionSizes

# Heads of distillation, matching and masked language modelling, and tensors implied by sizes.
_LEFT_OUT = re.compile(
    r"(vision_encoder\.(clip_decoder|final_clip_decoder)\..*"
    r"|vision_encoder\.clip_(img_)?pos_embed"
    r"|itm_head\..*|temp|text_encoder\.cls\..*|.*\.position_ids)$"
)
_LAYER = re.compile(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.")
# Not deducible from shapes: all 1B networks have 16 heads.
_HEADS = 16


def networks(config: InternVideo2Config) -> tuple[nn.Module, ...]:
    """All networks of the set."""
    return ProjectedVision(config), ProjectedText(config)


def convert(tensors: Mapping[str, Tensor]) -> tuple[InternVideo2Config, dict[str, Tensor]]:
    """Select the tensors of the two networks, and infer the sizes.

    Text layers from the first with cross-attention to the video on are dropped.

    Raises:
        CheckpointError: a tensor that determines a size is missing.
    """
    mixing = [
        int(found[1])
        for name in tensors
        if (found := _LAYER.match(name)) and ".crossattention." in name
    ]
    depth = min(mixing, default=None)
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not _LEFT_OUT.match(name) and not _is_beyond(name, depth)
    }
    return _config(shapes_of(kept)), kept


def _is_beyond(name: str, depth: int | None) -> bool:
    found = _LAYER.match(name)
    return found is not None and depth is not None and int(found[1]) >= depth


def _config(shapes: Shapes) -> InternVideo2Config:
    vision = _vision(shapes)
    return InternVideo2Config(
        vision=vision,
        text=_text(shapes),
        projection=size_of(shapes, "vision_proj.weight", 0),
        frames=vision.table_frames,
        image_size=vision.grid * vision.patch,
    )


def _vision(shapes: Shapes) -> VisionSizes:
    prefix = "vision_encoder."
    patches = size_of(shapes, f"{prefix}img_pos_embed", 1) - 1
    width = size_of(shapes, f"{prefix}patch_embed.proj.weight", 0)
    return VisionSizes(
        width=width,
        layers=count_layers(shapes, f"{prefix}blocks."),
        heads=_HEADS,
        mlp=size_of(shapes, f"{prefix}blocks.0.mlp.fc1.weight", 0),
        pool_heads=_HEADS,
        pooled=size_of(shapes, f"{prefix}clip_projector.cross_attn.proj.weight", 0),
        patch=size_of(shapes, f"{prefix}patch_embed.proj.weight", 3),
        grid=round(patches**0.5),
        table_frames=(size_of(shapes, f"{prefix}pos_embed", 1) - 1) // patches,
    )


def _text(shapes: Shapes) -> BertSizes:
    prefix = "text_encoder.bert."
    return BertSizes(
        width=size_of(shapes, f"{prefix}embeddings.word_embeddings.weight", 1),
        layers=count_layers(shapes, f"{prefix}encoder.layer."),
        heads=_HEADS,
        mlp=size_of(shapes, f"{prefix}encoder.layer.0.intermediate.dense.weight", 0),
        vocabulary=size_of(shapes, f"{prefix}embeddings.word_embeddings.weight", 0),
        positions=size_of(shapes, f"{prefix}embeddings.position_embeddings.weight", 0),
    )


RECIPE = Recipe(
    InternVideo2Config,
    networks,
    convert,
    TextReading(bert_tokenizer, lambda config: (config.text.vocabulary,)),
)
