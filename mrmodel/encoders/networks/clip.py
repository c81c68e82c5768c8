"""CLIP (Radford et al. 2021): a vision and a text transformer with a common output space.

Parameters are named as in the Hugging Face checkpoint, spelling included, so that it loads as is;
`mrmodel.convert.encoders.clip` renames OpenAI's. Blocks are pre-norm, and the activation is the
quick GELU, x * sigmoid(1.702 x), which the weights were trained with.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from mrmodel.encoders.torch_base import embed_patches
from mrmodel.encoders.user_weights import Count, SetConfig, TransformerSizes, require_whole_patches

NORM_EPS = 1e-5


class ClipConfig(SetConfig):
    """config.json of the set ``clip_b32``; the defaults are ViT-B/32's."""

    vision: TransformerSizes = TransformerSizes(width=768, layers=12, heads=12, mlp=3072)
    image_size: Count = 224
    patch: Count = 32
    text: TransformerSizes = TransformerSizes(width=512, layers=12, heads=8, mlp=2048)
    vocabulary: Count = 49408
    positions: Count = 77
    projection: Count = 512

    @model_validator(mode="after")
    def _patches_tile_the_picture(self) -> Self:
        require_whole_patches(self.image_size, self.patch)
        return self


class _Attention(nn.Module):
    """Multi-head self-attention with biases in all layers."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_proj = nn.Linear(sizes.width, sizes.width)
        self.k_proj = nn.Linear(sizes.width, sizes.width)
        self.v_proj = nn.Linear(sizes.width, sizes.width)
        self.out_proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, states: Tensor, causal: bool) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        projected = (self.q_proj(states), self.k_proj(states), self.v_proj(states))
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    """Linear, quick GELU, Linear."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.width, sizes.mlp)
        self.fc2 = nn.Linear(sizes.mlp, sizes.width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        inner = self.fc1(states)
        out: Tensor = self.fc2(inner * torch.sigmoid(1.702 * inner))
        return out


class _Layer(nn.Module):
    """Attention and MLP, each with pre-LayerNorm and residual."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        self.self_attn = _Attention(sizes)
        self.layer_norm1 = nn.LayerNorm(sizes.width, eps=NORM_EPS)
        self.mlp = _Mlp(sizes)
        self.layer_norm2 = nn.LayerNorm(sizes.width, eps=NORM_EPS)

    def forward(self, states: Tensor, causal: bool) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        states = states + self.self_attn(self.layer_norm1(states), causal)
        out: Tensor = states + self.mlp(self.layer_norm2(states))
        return out


class _Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))

    def forward(self, states: Tensor, causal: bool = False) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        for layer in self.layers:
            states = layer(states, causal)
        return states


class _VisionEmbeddings(nn.Module):
    """Class token and patches, with learned positions."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width, patches = config.vision.width, (config.image_size // config.patch) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, config.patch, config.patch, bias=False)
        self.position_embedding = nn.Embedding(1 + patches, width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1 + patches, width)."""
        patches = embed_patches(images, self.patch_embedding.weight)
        first = self.class_embedding.expand(len(images), 1, -1)
        embedded: Tensor = torch.cat((first, patches), dim=1) + self.position_embedding.weight
        return embedded


class _VisionTransformer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = _VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.vision.width, eps=NORM_EPS)
        self.encoder = _Encoder(config.vision)
        self.post_layernorm = nn.LayerNorm(config.vision.width, eps=NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, width): the class token after the last norm."""
        states = self.encoder(self.pre_layrnorm(self.embeddings(images)))
        pooled: Tensor = self.post_layernorm(states[:, 0])
        return pooled


class ClipVision(nn.Module):
    """Images to vectors in the common space."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.vision_model = _VisionTransformer(config)
        self.visual_projection = nn.Linear(config.vision.width, config.projection, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised -> (B, projection), not of unit length."""
        projected: Tensor = self.visual_projection(self.vision_model(images))
        return projected


class _TextEmbeddings(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.text.width)
        self.position_embedding = nn.Embedding(config.positions, config.text.width)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, N) int64 -> (B, N, width)."""
        positions = self.position_embedding.weight[: token_ids.shape[1]]
        embedded: Tensor = self.token_embedding(token_ids) + positions
        return embedded


class _TextTransformer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = _TextEmbeddings(config)
        self.encoder = _Encoder(config.text)
        self.final_layer_norm = nn.LayerNorm(config.text.width, eps=NORM_EPS)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, N) int64 -> (B, N, width), with causal attention."""
        states: Tensor = self.final_layer_norm(self.encoder(self.embeddings(token_ids), True))
        return states


class ClipText(nn.Module):
    """Token ids to the states after the last norm; `project` maps them to the common space."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.text_model = _TextTransformer(config)
        self.text_projection = nn.Linear(config.text.width, config.projection, bias=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, N) int64 of texts of equal length, end token included -> (B, N, width)."""
        states: Tensor = self.text_model(token_ids)
        return states

    def project(self, states: Tensor) -> Tensor:
        """(..., width) -> (..., projection); the row of the end token is the sentence vector."""
        projected: Tensor = self.text_projection(states)
        return projected
