"""SlowFast R50 8x8 (Feichtenhofer et al. 2019): two 3-D ResNets over one clip.

The slow pathway sees every fourth frame with many channels, the fast pathway all frames with an
eighth of them; a lateral connection after each stage fuses the fast pathway into the slow one.
Parameters are named as in PySlowFast, so that its state dict loads as is. Sizes are configurable,
the structure is that of R50 8x8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.encoders.user_weights import Count, SetConfig, Sizes

NORM_EPS = 1e-5
# Temporal kernel of the first convolution of a stage's blocks, by pathway.
_SLOW_KERNELS, _FAST_KERNELS = (1, 1, 3, 3), (3, 3, 3, 3)
_STEM_KERNELS = (1, 5)
_FUSE_KERNEL, _FUSE_GROWTH = 7, 2
_STRIDES = (1, 2, 2, 2)


class SlowFastStage(Sizes):
    """One of the four residual stages: blocks, and the slow pathway's inner and output channels.

    The fast pathway has `fast_ratio` times fewer.
    """

    blocks: Count
    inner: Count
    out: Count


class SlowFastConfig(SetConfig):
    """config.json of the set ``slowfast``.

    Attributes:
        stem: channels of the slow pathway after the first convolution.
        stages: four of them.
        fast_ratio: channels of the slow pathway / of the fast pathway.
        frames: per clip; the slow pathway sees every `alpha`-th.
        alpha: see above.
        image_size: pixels of the square image.
        compat: ``hero`` takes the frames of the published HERO features, ``fixed`` spreads them
            over the clip evenly.
        compute_dtype: on a GPU bfloat16 is slower here, and makes the rounding of rows depend on
            the clip's position in its batch.
    """

    compute_dtype: Literal["float32"] = "float32"

    stem: Count = 64
    stages: tuple[SlowFastStage, SlowFastStage, SlowFastStage, SlowFastStage] = (
        SlowFastStage(blocks=3, inner=64, out=256),
        SlowFastStage(blocks=4, inner=128, out=512),
        SlowFastStage(blocks=6, inner=256, out=1024),
        SlowFastStage(blocks=3, inner=512, out=2048),
    )
    fast_ratio: Count = 8
    frames: Count = 32
    alpha: Count = 4
    image_size: Count = 224
    compat: Literal["hero", "fixed"] = "hero"

    @property
    def width(self) -> int:
        """Channels of a row: the last stage of both pathways."""
        out = self.stages[-1].out
        return out + out // self.fast_ratio


class _BatchNorm(nn.Module):
    """Frozen batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, states: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(states, mean, variance, self.weight, self.bias, eps=NORM_EPS)


def _convolution(
    channels: tuple[int, int], kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> nn.Conv3d:
    """Without bias; padded so that stride 1 keeps the size."""
    before, after, across = (side // 2 for side in kernel)
    return nn.Conv3d(*channels, kernel, stride, (before, after, across), bias=False)


class _Stem(nn.Module):
    """7 x 7 convolution over `frames` frames, then pooling; a quarter of each side remains."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.conv = _convolution((3, channels), (frames, 7, 7), (1, 2, 2))
        self.bn = _BatchNorm(channels)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, C, T, H / 4, W / 4)."""
        states = F.relu(self.bn(self.conv(frames)))
        return F.max_pool3d(states, (1, 3, 3), (1, 2, 2), (0, 1, 1))


class _Bottleneck(nn.Module):
    """1x1 over `frames` frames, 3x3 with the stride, 1x1."""

    def __init__(self, channels: tuple[int, int, int], frames: int, stride: int) -> None:
        super().__init__()
        before, inner, after = channels
        self.a = _convolution((before, inner), (frames, 1, 1), (1, 1, 1))
        self.a_bn = _BatchNorm(inner)
        self.b = _convolution((inner, inner), (1, 3, 3), (1, stride, stride))
        self.b_bn = _BatchNorm(inner)
        self.c = _convolution((inner, after), (1, 1, 1), (1, 1, 1))
        self.c_bn = _BatchNorm(after)

    def forward(self, states: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, H / stride, W / stride)."""
        states = F.relu(self.a_bn(self.a(states)))
        states = F.relu(self.b_bn(self.b(states)))
        out: Tensor = self.c_bn(self.c(states))
        return out


class _Residual(nn.Module):
    """A bottleneck and a shortcut, with a projection where the shapes differ."""

    def __init__(self, channels: tuple[int, int, int], frames: int, stride: int) -> None:
        super().__init__()
        before, _, after = channels
        self.has_projection = before != after or stride != 1
        if self.has_projection:
            self.branch1 = _convolution((before, after), (1, 1, 1), (1, stride, stride))
            self.branch1_bn = _BatchNorm(after)
        self.branch2 = _Bottleneck(channels, frames, stride)

    def forward(self, states: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, H / stride, W / stride)."""
        shortcut = self.branch1_bn(self.branch1(states)) if self.has_projection else states
        return F.relu(shortcut + self.branch2(states))


class _Stems(nn.Module):
    """The first layers of both pathways."""

    def __init__(self, config: SlowFastConfig) -> None:
        super().__init__()
        slow, fast = _STEM_KERNELS
        self.pathway0_stem = _Stem(config.stem, slow)
        self.pathway1_stem = _Stem(config.stem // config.fast_ratio, fast)

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        """Frames of both pathways -> their states."""
        return self.pathway0_stem(slow), self.pathway1_stem(fast)


class _Stage(nn.Module):
    """The same number of residual blocks in both pathways."""

    def __init__(self, config: SlowFastConfig, number: int, slow_channels: int) -> None:
        super().__init__()
        stage, ratio = config.stages[number], config.fast_ratio
        before = config.stages[number - 1].out if number else config.stem
        self.blocks = stage.blocks
        kernels = (_SLOW_KERNELS[number], _FAST_KERNELS[number])
        for path, (channels, divisor) in enumerate(((slow_channels, 1), (before // ratio, ratio))):
            for block in range(stage.blocks):
                sizes = (channels, stage.inner // divisor, stage.out // divisor)
                stride = 1 if block else _STRIDES[number]
                residual = _Residual(sizes, kernels[path], stride)
                self.add_module(f"pathway{path}_res{block}", residual)
                channels = stage.out // divisor

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        """States of both pathways -> their states."""
        for block in range(self.blocks):
            slow = self.get_submodule(f"pathway0_res{block}")(slow)
            fast = self.get_submodule(f"pathway1_res{block}")(fast)
        return slow, fast


class _Fuse(nn.Module):
    """Lateral connection: concatenates the fast pathway, strided in time, to the slow."""

    def __init__(self, channels: int, alpha: int) -> None:
        super().__init__()
        out = channels * _FUSE_GROWTH
        self.conv_f2s = _convolution((channels, out), (_FUSE_KERNEL, 1, 1), (alpha, 1, 1))
        self.bn = _BatchNorm(out)

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T / alpha, H, W) and (B, C / 8, T, H, W) -> wider slow states; the same fast."""
        folded = F.relu(self.bn(self.conv_f2s(fast)))
        return torch.cat((slow, folded), dim=1), fast


class SlowFast(nn.Module):
    """Clips to pooled features of both pathways."""

    def __init__(self, config: SlowFastConfig) -> None:
        super().__init__()
        self.alpha = config.alpha
        self.s1 = _Stems(config)
        channels = (config.stem, *(stage.out for stage in config.stages))
        for number, slow in enumerate(channels[:-1]):
            fast = slow // config.fast_ratio
            self.add_module(f"s{number + 1}_fuse", _Fuse(fast, config.alpha))
            stage = _Stage(config, number, slow + _FUSE_GROWTH * fast)
            self.add_module(f"s{number + 2}", stage)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W) normalised -> (B, slow + fast channels), non-negative."""
        slow, fast = self.s1(frames[:, :, self._slow_frames(frames.shape[2])], frames)
        for number in range(1, 5):
            slow, fast = self.get_submodule(f"s{number}_fuse")(slow, fast)
            slow, fast = self.get_submodule(f"s{number + 1}")(slow, fast)
        return torch.cat((slow.mean(dim=(2, 3, 4)), fast.mean(dim=(2, 3, 4))), dim=1)

    def _slow_frames(self, count: int) -> Sequence[int]:
        """0, 4, 8, 13, 17, 22, 26, 31 of 32: from the first to the last, rounded down."""
        places: list[int] = torch.linspace(0, count - 1, count // self.alpha).long().tolist()
        return places
