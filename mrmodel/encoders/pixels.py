"""From the pixels of clips to the input of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Colour = tuple[float, float, float]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_SPREAD: Colour = (0.229, 0.224, 0.225)
CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_SPREAD: Colour = (0.26862954, 0.26130258, 0.27577711)


def normalise_pixels(
    frames: Tensor, mean: Sequence[float], spread: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W): (x / 255 - mean) / spread, in float32, then cast."""
    centre = torch.tensor(mean, device=frames.device)
    scale = torch.tensor(spread, device=frames.device)
    return ((frames.float() / 255.0 - centre) / scale).movedim(-1, -3).to(dtype)


def embed_patches(pictures: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution whose patches do not overlap, as the matrix product that it is.

    cuDNN's convolutions round to TF32 unless told otherwise, and need not repeat their results.

    Args:
        pictures: (B, 3, H, W); what lies beyond the last whole patch is not seen.
        weight: (width, 3, patch, patch), or with an axis of one frame behind the colours.
        bias: (width,).

    Returns:
        (B, patches, width), row by row.
    """
    size = weight.shape[-1]
    cut = pictures.unfold(2, size, size).unfold(3, size, size)  # (B, 3, rows, columns, size, size)
    rows = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return F.linear(rows, weight.flatten(1), bias)
