"""BLIP-2's published weights, in Hugging Face's names, as the set ``blip2``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from mrmodel.convert.encoders.recipe import Recipe, TextReading, shapes_of
from mrmodel.convert.encoders.vocabulary import bert_tokenizer
from mrmodel.convert.settings import Shapes, count_layers, size_of
from mrmodel.encoders.blip2 import (
    Blip2SetConfig,
    Blip2Text,
    Blip2Vision,
    Blip2VisionSizes,
    QFormerSizes,
)

# Projections, the matching head, and position ids implied by the sizes.
_LEFT_OUT = re.compile(r"((vision|text)_projection\..*|itm_head\..*|.*position_ids)$")
_VISION, _QFORMER = "vision_model.encoder.layers.", "qformer.encoder.layer."
# Not deducible from shapes.
_VISION_HEADS, _QFORMER_HEAD = 16, 64


def networks(config: Blip2SetConfig) -> tuple[nn.Module, ...]:
    """All networks of the set."""
    return Blip2Vision(config), Blip2Text(config)


def convert(tensors: Mapping[str, Tensor]) -> tuple[Blip2SetConfig, dict[str, Tensor]]:
    """Rename tensors for `Blip2Vision` and `Blip2Text`, and infer the sizes.

    Raises:
        CheckpointError: a tensor that determines a size is missing.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not _LEFT_OUT.match(name)}
    if "query_tokens" in kept:
        kept["queries.tokens"] = kept.pop("query_tokens")
    return _config(shapes_of(kept)), kept


def _config(shapes: Shapes) -> Blip2SetConfig:
    patch = size_of(shapes, "vision_model.embeddings.patch_embedding.weight", 2)
    positions = size_of(shapes, "vision_model.embeddings.position_embedding", 1)
    return Blip2SetConfig(
        vision=Blip2VisionSizes(
            width=size_of(shapes, "vision_model.embeddings.patch_embedding.weight", 0),
            layers=count_layers(shapes, _VISION),
            heads=_VISION_HEADS,
            mlp=size_of(shapes, f"{_VISION}0.mlp.fc1.weight", 0),
            patch=patch,
        ),
        qformer=_qformer(shapes),
        queries=size_of(shapes, "queries.tokens", 1),
        image_size=round((positions - 1) ** 0.5) * patch,
    )


def _qformer(shapes: Shapes) -> QFormerSizes:
    width = size_of(shapes, "embeddings.word_embeddings.weight", 1)
    layers = count_layers(shapes, _QFORMER)
    mixing = [
        number
        for number in range(layers)
        if f"{_QFORMER}{number}.crossattention.attention.key.weight" in shapes
    ]
    return QFormerSizes(
        width=width,
        layers=layers,
        heads=max(1, width // _QFORMER_HEAD),
        mlp=size_of(shapes, f"{_QFORMER}0.intermediate.dense.weight", 0),
        vocabulary=size_of(shapes, "embeddings.word_embeddings.weight", 0),
        positions=size_of(shapes, "embeddings.position_embeddings.weight", 0),
        mix_every=mixing[1] - mixing[0] if len(mixing) > 1 else max(1, layers),
    )


RECIPE = Recipe(
    Blip2SetConfig,
    networks,
    convert,
    # The weights have a row for a decoder token, which BERT's vocabulary lacks.
    TextReading(
        bert_tokenizer, lambda config: (config.qformer.vocabulary - 1, config.qformer.vocabulary)
    ),
)
