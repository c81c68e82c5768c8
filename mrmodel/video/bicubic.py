"""Bicubic scaling without antialiasing, as in PyTorch's `interpolate`, on uint8 images.

FFmpeg's scaler antialiases when downscaling. Some published pipelines did not; this reproduces
their pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Parameter of Keys' cubic convolution; PyTorch's value without antialiasing.
_SHARPNESS = -0.75


def resize_bicubic(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image with a 4 x 4 kernel, whatever the factor.

    Args:
        picture: (H, W, 3) uint8.
        size: (width, height) of the result.

    Returns:
        (height, width, 3) uint8, rounded and clipped to 0..255.
    """
    width, height = size
    rows = _taps(picture.shape[0], height)
    columns = _taps(picture.shape[1], width)
    across = np.zeros((picture.shape[0], width, 3), np.float32)
    for places, weights in columns:
        across += weights[None, :, None] * picture[:, places]
    both = np.zeros((height, width, 3), np.float32)
    for places, weights in rows:
        both += weights[:, None, None] * across[places]
    return np.asarray(np.clip(np.rint(both), 0, 255), dtype=np.uint8)


def _taps(before: int, after: int) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Four (indices, weights), each (after,): the input terms of each output row or column."""
    centres = (np.arange(after) + 0.5) * (before / after) - 0.5
    first = np.floor(centres).astype(np.int64)
    taps = []
    for offset in (-1, 0, 1, 2):
        weights = _kernel(np.abs(centres - (first + offset)))
        taps.append((np.clip(first + offset, 0, before - 1), weights.astype(np.float32)))
    return taps


def _kernel(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel at distances 0..2."""
    a, x = _SHARPNESS, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)
