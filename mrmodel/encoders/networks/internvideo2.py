"""The vision network of InternVideo2 stage 2 (Wang et al. 2024), in plain PyTorch.

A vision transformer over the patches of all frames at once. Parameters are named as in the official
code, so its checkpoint loads as is. Easily got wrong:

* queries and keys are normalised over the whole width, before they are split into heads;
* there is no final norm: the query of attention pooling is the mean of all tokens, CLS included;
* a clip of one frame has a separate position table;
* the weights were trained with the tanh form of GELU; the official fallback code has the exact one.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from mrmodel.encoders.torch_base import embed_patches
from mrmodel.encoders.user_weights import Count, TransformerSizes

RMS_EPS, POOL_EPS = 1e-6, 1e-5

Gelu = Literal["tanh", "exact"]


class VisionSizes(TransformerSizes):
    """Sizes of the network; the defaults are those of 1B.

    Attributes:
        pool_heads, pooled: heads and channels of the attention pooling.
        patch: side of a patch in pixels.
        grid: patches per image side in the position tables.
        table_frames: frames in the position table for videos.
    """

    width: Count = 1408
    layers: Count = 40
    heads: Count = 16
    mlp: Count = 6144
    pool_heads: Count = 16
    pooled: Count = 768
    patch: Count = 14
    grid: Count = 16
    table_frames: Count = 4

    @model_validator(mode="after")
    def _pool_heads_share_the_width(self) -> Self:
        if self.width % self.pool_heads:
            raise ValueError(f"{self.pool_heads} pool_heads cannot share {self.width} channels")
        return self


class _RmsNorm(nn.Module):
    """Root-mean-square norm: statistics in float32, the weight after the cast back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, states: Tensor) -> Tensor:
        """(..., width) -> the same."""
        values = states.float()
        scale = torch.rsqrt(values.square().mean(dim=-1, keepdim=True) + RMS_EPS)
        return self.weight * (values * scale).to(states.dtype)


class _LayerScale(nn.Module):
    """A learned factor per channel, applied in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, states: Tensor) -> Tensor:
        """(..., width) -> the same."""
        return (states.float() * self.gamma.float()).to(states.dtype)


class _Attention(nn.Module):
    """Self-attention; queries and keys are normalised before the split into heads."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.q_norm = _RmsNorm(sizes.width)
        self.k_norm = _RmsNorm(sizes.width)
        self.proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        query, key, value = self.qkv(states).chunk(3, dim=-1)
        query, key, value = (
            split_heads(part, self.heads) for part in (self.q_norm(query), self.k_norm(key), value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, sizes: VisionSizes, gelu: Gelu) -> None:
        super().__init__()
        self.approximate = "tanh" if gelu == "tanh" else "none"
        self.fc1 = nn.Linear(sizes.width, sizes.mlp)
        self.fc2 = nn.Linear(sizes.mlp, sizes.width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(states), approximate=self.approximate))
        return out


class _Block(nn.Module):
    """Attention and MLP, each with pre-norm, layer scale and residual."""

    def __init__(self, sizes: VisionSizes, gelu: Gelu) -> None:
        super().__init__()
        self.norm1 = _RmsNorm(sizes.width)
        self.attn = _Attention(sizes)
        self.ls1 = _LayerScale(sizes.width)
        self.norm2 = _RmsNorm(sizes.width)
        self.mlp = _Mlp(sizes, gelu)
        self.ls2 = _LayerScale(sizes.width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        states = states + self.ls1(self.attn(self.norm1(states)))
        out: Tensor = states + self.ls2(self.mlp(self.norm2(states)))
        return out


class _PatchEmbed(nn.Module):
    """Linear embedding of each patch of each frame, without temporal patches."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        patch = (1, sizes.patch, sizes.patch)
        self.proj = nn.Conv3d(3, sizes.width, patch, patch)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, T * patches, width), frame by frame, row by row."""
        pictures = frames.transpose(1, 2).flatten(0, 1)
        patches = embed_patches(pictures, self.proj.weight, self.proj.bias)
        return patches.reshape(len(frames), -1, patches.shape[-1])


class _CrossAttention(nn.Module):
    """One query over all tokens; the biases are separate parameters in the published files."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.heads = sizes.pool_heads
        for name in "qkv":
            self.add_module(name, nn.Linear(sizes.width, sizes.width, bias=False))
        self.q_bias = nn.Parameter(torch.zeros(sizes.width))
        self.k_bias = nn.Parameter(torch.zeros(sizes.width))
        self.v_bias = nn.Parameter(torch.zeros(sizes.width))
        self.proj = nn.Linear(sizes.width, sizes.pooled)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, 1, width) over (B, N, width) -> (B, pooled)."""
        parts = ((query, self.q_bias), (key, self.k_bias), (value, self.v_bias))
        query, key, value = (
            split_heads(self.get_submodule(name)(states) + bias, self.heads)
            for name, (states, bias) in zip("qkv", parts, strict=True)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(1))
        return out


class _AttentionPooling(nn.Module):
    """The mean of all tokens attends to all tokens; q, k and v have separate LayerNorms."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.norm1_q = nn.LayerNorm(sizes.width, eps=POOL_EPS)
        self.norm1_k = nn.LayerNorm(sizes.width, eps=POOL_EPS)
        self.norm1_v = nn.LayerNorm(sizes.width, eps=POOL_EPS)
        self.cross_attn = _CrossAttention(sizes)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, width) -> (B, pooled)."""
        query = self.norm1_q(states.mean(dim=1, keepdim=True))
        pooled: Tensor = self.cross_attn(query, self.norm1_k(states), self.norm1_v(states))
        return pooled


class InternVideo2Vision(nn.Module):
    """Clips to pooled vectors, before any projection."""

    def __init__(self, sizes: VisionSizes, gelu: Gelu) -> None:
        super().__init__()
        self.sizes = sizes
        patches = sizes.grid**2
        self.patch_embed = _PatchEmbed(sizes)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + sizes.table_frames * patches, sizes.width))
        self.img_pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, sizes.width))
        self.blocks = nn.ModuleList(_Block(sizes, gelu) for _ in range(sizes.layers))
        self.clip_projector = _AttentionPooling(sizes)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W) normalised -> (B, pooled)."""
        count, side = frames.shape[2], frames.shape[3] // self.sizes.patch
        patches = self.patch_embed(frames)
        states = torch.cat((self.cls_token.expand(len(frames), -1, -1), patches), dim=1)
        states = states + self._positions(count, side)
        for block in self.blocks:
            states = block(states)
        pooled: Tensor = self.clip_projector(states)
        return pooled

    def _positions(self, frames: int, side: int) -> Tensor:
        """(1, 1 + frames * side^2, width), interpolated where the table has another size."""
        sizes = self.sizes
        if frames == 1:
            return stretch_positions(self.img_pos_embed, (1, sizes.grid), (1, side))
        table = (sizes.table_frames, sizes.grid)
        return stretch_positions(self.pos_embed, table, (frames, side))


def stretch_positions(positions: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Interpolate a position table to another (frames, patches per side); CLS keeps its row.

    Linear along time, then bicubic in space, as in the official loader.

    Args:
        positions: (1, 1 + frames * side^2, width).
        before: (frames, side) of it.
        after: (frames, side) wanted.
    """
    (old_frames, old_side), (frames, side) = before, after
    first, table = positions[:, :1], positions[0, 1:]
    table = table.view(old_frames, old_side, old_side, -1)
    if frames != old_frames:
        series = table.permute(1, 2, 3, 0).flatten(0, 1)
        series = F.interpolate(series, size=frames, mode="linear", align_corners=False)
        table = series.view(old_side, old_side, -1, frames).permute(3, 0, 1, 2)
    if side != old_side:
        pictures = table.permute(0, 3, 1, 2)
        pictures = F.interpolate(pictures, size=(side, side), mode="bicubic", align_corners=False)
        table = pictures.permute(0, 2, 3, 1)
    return torch.cat((first, table.flatten(0, 2)[None]), dim=1)


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(B, N, width) -> (B, heads, N, width / heads)."""
    batch, count, width = states.shape
    return states.view(batch, count, heads, width // heads).transpose(1, 2)
