"""BLIP-2 streams as in VideoLights: states of the Q-Former.

The networks are Hugging Face's (extra ``[blip2]``). Images are preprocessed as for CLIP, after
which the published extractor's processor does not scale them. Clip and sentence vectors are states
before the projections, so they cannot be compared.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mrmodel.encoders.base import RowLayout
from mrmodel.encoders.torch_base import (
    CLIP_MEAN,
    CLIP_SPREAD,
    UserWeightsTextEncoder,
    UserWeightsVideoEncoder,
    normalise_pixels,
)
from mrmodel.encoders.user_weights import (
    Count,
    SetConfig,
    TransformerSizes,
    WeightSet,
    require_whole_patches,
)
from mrmodel.errors import WeightsError
from mrmodel.video.sampling import FrameSampling


class Blip2VisionSizes(TransformerSizes):
    """Sizes of the vision transformer; the defaults are those of BLIP-2's truncated ViT-g."""

    width: Count = 1408
    layers: Count = 39
    heads: Count = 16
    mlp: Count = 6144
    patch: Count = 14


class QFormerSizes(TransformerSizes):
    """Sizes of the Q-Former; every `mix_every`-th layer cross-attends to the image."""

    width: Count = 768
    layers: Count = 12
    heads: Count = 12
    mlp: Count = 3072
    vocabulary: Count = 30523
    positions: Count = 512
    mix_every: Count = 2


class Blip2SetConfig(SetConfig):
    """config.json of the set ``blip2``.

    Attributes:
        vision, qformer: sizes of the networks.
        queries: number of learned query tokens; a clip's row is the first one's state.
        image_size: pixels of the square image.
        max_tokens: of a sentence, with special tokens; the published extractor does not truncate.
    """

    vision: Blip2VisionSizes = Blip2VisionSizes()
    qformer: QFormerSizes = QFormerSizes()
    queries: Count = 32
    image_size: Count = 224
    max_tokens: Count = 512

    @model_validator(mode="after")
    def _patches_tile_the_picture(self) -> Self:
        require_whole_patches(self.image_size, self.vision.patch)
        return self


class _TextEmbeddings(nn.Module):
    """Word and position embeddings; the Q-Former normalises them."""

    def __init__(self, sizes: QFormerSizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.width)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, N) int64 -> (B, N, width)."""
        positions = self.position_embeddings.weight[: token_ids.shape[1]]
        embedded: Tensor = self.word_embeddings(token_ids) + positions
        return embedded


class _Queries(nn.Module):
    """The learned query tokens, in a separate module so that they can be loaded as a part."""

    def __init__(self, config: Blip2SetConfig) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(1, config.queries, config.qformer.width))


class Blip2Text(nn.Module):
    """Encodes sentences with the Q-Former, without an image."""

    def __init__(self, config: Blip2SetConfig) -> None:
        super().__init__()
        self.embeddings = _TextEmbeddings(config.qformer)
        self.qformer = build_qformer(config)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, N) int64 of texts of one length -> (B, N, width)."""
        out = self.qformer(query_embeds=self.embeddings(token_ids), query_length=0)
        states: Tensor = out.last_hidden_state
        return states


class Blip2Vision(nn.Module):
    """Images to the state of the first query."""

    def __init__(self, config: Blip2SetConfig) -> None:
        super().__init__()
        self.vision_model = build_vision(config)
        self.queries = _Queries(config)
        self.qformer = build_qformer(config)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised -> (B, width), without projection or norm."""
        picture = self.vision_model(pixel_values=images).last_hidden_state
        queries = self.queries.tokens.expand(len(images), -1, -1)
        out = self.qformer(query_embeds=queries, encoder_hidden_states=picture)
        state: Tensor = out.last_hidden_state[:, 0]
        return state


class Blip2VideoEncoder(UserWeightsVideoEncoder[Blip2SetConfig]):
    """The state of the first query token, for one frame per clip."""

    name: ClassVar[str] = "blip2.video768"
    set_name: ClassVar[str] = "blip2"
    dim: ClassVar[int] = 768
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    gpu_batch: ClassVar[int] = 32

    @cached_property
    def config(self) -> Blip2SetConfig:
        """Sizes of the networks."""
        return _config(self.weights, self.dim)

    @cached_property
    def sampling(self) -> FrameSampling:
        """One frame, as chosen by ffmpeg's fps filter; centre crop."""
        side = self.config.image_size
        return FrameSampling(1, (side, side), "ffmpeg_fps", "bicubic", "crop")

    @cached_property
    def _model(self) -> Blip2Vision:
        config = self.config
        model = self.weights.load(lambda: Blip2Vision(config), self.device, config.dtype)
        # As published: only the vision transformer runs in half precision.
        model.qformer.float()
        model.queries.float()
        return model

    def _run(self, frames: Tensor) -> Tensor:
        pixels = normalise_pixels(frames[:, 0], CLIP_MEAN, CLIP_SPREAD, self.config.dtype)
        rows: Tensor = self._model(pixels)
        return rows


class Blip2TextEncoder(UserWeightsTextEncoder[Blip2SetConfig]):
    """States of [CLS], of the tokens and of [SEP], in this order."""

    name: ClassVar[str] = "blip2.text768"
    set_name: ClassVar[str] = "blip2"
    dim: ClassVar[int] = 768
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    layout: ClassVar[RowLayout] = "start, tokens, end"

    @cached_property
    def config(self) -> Blip2SetConfig:
        """Sizes of the networks."""
        return _config(self.weights, self.dim)

    @property
    def max_tokens(self) -> int:
        """Longer texts are truncated; [CLS] and [SEP] count."""
        return min(self.config.max_tokens, self.config.qformer.positions)

    @cached_property
    def _model(self) -> Blip2Text:
        config = self.config
        return self.weights.load(lambda: Blip2Text(config), self.device, torch.float32)


def build_vision(config: Blip2SetConfig) -> Any:
    """Hugging Face's vision transformer of BLIP-2.

    Raises:
        WeightsError: transformers is not installed.
    """
    classes, sizes = _transformers(), config.vision
    settings = classes.Blip2VisionConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp,
        image_size=config.image_size,
        patch_size=sizes.patch,
    )
    return classes.Blip2VisionModel(settings)


def build_qformer(config: Blip2SetConfig) -> Any:
    """Hugging Face's Q-Former, with its layers for text.

    Raises:
        WeightsError: transformers is not installed.
    """
    classes, sizes = _transformers(), config.qformer
    settings = classes.Blip2QFormerConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=sizes.positions,
        cross_attention_frequency=sizes.mix_every,
        encoder_hidden_size=config.vision.width,
        use_qformer_text_input=True,
    )
    return classes.Blip2QFormerModel(settings)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        hint = 'pip install "mrmodel[blip2]"'
        raise WeightsError(f"BLIP-2 runs on Hugging Face's networks: {hint}") from None
    return transformers


def _config(weights: WeightSet, dim: int) -> Blip2SetConfig:
    _transformers()
    config = weights.config(Blip2SetConfig)
    weights.require_width("qformer.width", config.qformer.width, dim)
    return config
