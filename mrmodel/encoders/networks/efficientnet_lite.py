"""EfficientNet-Lite0: an ImageNet classifier for small devices (Tan and Le 2019).

Inverted residual blocks with ReLU6, no squeeze-excitation. Batch normalisation is folded into the
convolutions on loading, so the module is for inference only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.encoders.bundled_weights import WeightsLock

FEATURE_DIM, N_CLASSES = 1280, 1000
BATCH_NORM_EPS = 1e-3
# (repeats, channels out, kernel, stride of the first repeat, expansion); stem and head are fixed.
STAGES = (
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)
STEM_CHANNELS = 32


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: output ceil(side / stride), extra at end."""

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C', ceil(H / stride), ceil(W / stride))."""
        height, width = (
            _same_padding(int(side), self.kernel_size[0], self.stride[0])
            for side in images.shape[-2:]
        )
        return super().forward(F.pad(images, (*width, *height)))


class InvertedResidual(nn.Module):
    """Expand (1x1), depthwise (kxk), project (1x1); with a residual where shapes allow."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.expand = nn.Conv2d(channels_in, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, channels_out, 1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C', H', W')."""
        inner = images if self.expand is None else F.relu6(self.expand(images))
        narrowed: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return images + narrowed if self.residual else narrowed


class EfficientNetLite0(nn.Module):
    """Images -> 1280 pooled features; `classifier` turns those into 1000 ImageNet logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, STEM_CHANNELS, 3, 2)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for repeats, out, kernel, stride, expansion in STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels, out, kernel, step, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(channels, FEATURE_DIM, 1)
        self.classifier = nn.Linear(FEATURE_DIM, N_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) normalised by `normalise` -> (n, 1280)."""
        states = F.relu6(self.stem(images))
        for block in self.blocks:
            states = block(states)
        return F.relu6(self.head(states)).mean(dim=(2, 3))


def normalise(frames: Tensor) -> Tensor:
    """(n, H, W, 3) RGB 0..255 -> (n, 3, H, W) float32 as the network was trained on."""
    return (frames.permute(0, 3, 1, 2).float() - 127.0) / 128.0


def load_efficientnet_lite0(lock: WeightsLock) -> EfficientNetLite0:
    """The pretrained network in eval mode.

    Raises:
        WeightsError: the file is missing or is not the pinned one.
    """
    path = lock.path("efficientnet_lite0.weights")
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict(fold_checkpoint(tensors))
    return model.eval().requires_grad_(False)


def fold_checkpoint(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names with batch normalisation -> ours without it."""
    folded = _folded(tensors, "_conv_stem", "_bn0", "stem")
    folded |= _folded(tensors, "_conv_head", "_bn1", "head")
    for index in range(sum(stage[0] for stage in STAGES)):
        source, target = f"_blocks.{index}.", f"blocks.{index}."
        if f"{source}_expand_conv.weight" in tensors:
            folded |= _folded(tensors, f"{source}_expand_conv", f"{source}_bn0", f"{target}expand")
        folded |= _folded(
            tensors, f"{source}_depthwise_conv", f"{source}_bn1", f"{target}depthwise"
        )
        folded |= _folded(tensors, f"{source}_project_conv", f"{source}_bn2", f"{target}project")
    for kind in ("weight", "bias"):
        folded[f"classifier.{kind}"] = tensors[f"_fc.{kind}"]
    return folded


def _folded(
    tensors: Mapping[str, Tensor], convolution: str, norm: str, target: str
) -> dict[str, Tensor]:
    variance = tensors[f"{norm}.running_var"].double()
    scale = tensors[f"{norm}.weight"].double() / (variance + BATCH_NORM_EPS).sqrt()
    weight = tensors[f"{convolution}.weight"].double() * scale[:, None, None, None]
    bias = tensors[f"{norm}.bias"].double() - tensors[f"{norm}.running_mean"].double() * scale
    return {f"{target}.weight": weight.float(), f"{target}.bias": bias.float()}


def _same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    outputs = -(-side // stride)
    total = max((outputs - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2
