"""Dense optical flow between small grey images: coarse-to-fine Lucas-Kanade in plain NumPy.

Lucas and Kanade 1981 with the pyramid of Bouguet 2000: at every level the second image is warped
back by the current flow, and each pixel solves a 2x2 system over its neighbourhood for the
residual motion.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ITERATIONS = (2, 1, 1)  # at quarter, half and full size
RADIUS = 2  # neighbourhood of (2 RADIUS + 1)^2 pixels
# Added to the diagonal of each system, in squared grey levels (0..1) per pixel: in untextured
# regions the flow of the coarser level is kept, instead of following noise.
DAMPING = 5e-4
MAX_STEP = 2.0  # pixels one iteration may move


def optical_flow(first: Floats, second: Floats) -> Floats:
    """Motion of each pixel from `first` to `second`.

    (n, H, W) and (n, H, W) grey images in 0..1, sides divisible by 4 -> (n, 2, H, W): pixels to
    the right, pixels down.
    """
    pyramid = [(first, second)]
    for _ in ITERATIONS[1:]:
        pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
    flow = np.zeros((len(first), 2, *pyramid[-1][0].shape[1:]), dtype=np.float32)
    for level, (source, target) in enumerate(reversed(pyramid)):
        if level:
            flow = 2 * flow.repeat(2, axis=2).repeat(2, axis=3)
        for _ in range(ITERATIONS[level]):
            flow = flow + _step(source, _pulled_back(target, flow))
    return flow


def _step(source: Floats, target: Floats) -> Floats:
    """(n, 2, H, W) residual motion between two nearly aligned images."""
    mean = (source + target) * np.float32(0.5)
    slope_x, slope_y = _slope(mean, 2), _slope(mean, 1)
    change = target - source
    products = (
        slope_x * slope_x,
        slope_x * slope_y,
        slope_y * slope_y,
        slope_x * change,
        slope_y * change,
    )
    xx, xy, yy, xt, yt = _box_mean(np.stack(products))
    xx, yy = xx + np.float32(DAMPING), yy + np.float32(DAMPING)
    determinant = xx * yy - xy * xy
    step = np.stack((xy * yt - yy * xt, xy * xt - xx * yt), axis=1) / determinant[:, None]
    return np.asarray(step.clip(-MAX_STEP, MAX_STEP), dtype=np.float32)


def _pulled_back(pictures: Floats, flow: Floats) -> Floats:
    """Warp images by the flow, bilinear, with replicated borders."""
    n, height, width = pictures.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    x = (columns + flow[:, 0]).clip(0, width - 1)
    y = (rows + flow[:, 1]).clip(0, height - 1)
    left, top = x.astype(np.int32), y.astype(np.int32)
    x -= left
    y -= top
    corner = top * width + left + (np.arange(n, dtype=np.int32) * (height * width))[:, None, None]
    right, below = (left < width - 1).astype(np.int32), (top < height - 1) * np.int32(width)
    flat = pictures.reshape(-1)
    upper = flat[corner] * (1 - x) + flat[corner + right] * x
    corner += below
    lower = flat[corner] * (1 - x) + flat[corner + right] * x
    pulled: Floats = upper * (1 - y) + lower * y
    return pulled


def _halved(pictures: Floats) -> Floats:
    n, height, width = pictures.shape
    blocks = pictures.reshape(n, height // 2, 2, width // 2, 2)
    halved: Floats = (
        blocks[:, :, 0, :, 0]
        + blocks[:, :, 0, :, 1]
        + blocks[:, :, 1, :, 0]
        + blocks[:, :, 1, :, 1]
    ) * np.float32(0.25)
    return halved


def _slope(pictures: Floats, axis: int) -> Floats:
    """Central difference along `axis`, with replicated borders."""
    padding = [(1, 1) if dimension == axis else (0, 0) for dimension in range(3)]
    padded = np.pad(pictures, padding, mode="edge")
    size = pictures.shape[axis]
    ahead = padded.take(range(2, size + 2), axis=axis)
    behind = padded.take(range(size), axis=axis)
    slope: Floats = (ahead - behind) * np.float32(0.5)
    return slope


def _box_mean(maps: Floats) -> Floats:
    """Mean over each pixel's neighbourhood in the last two axes, zero-padded."""
    for axis in (-1, -2):
        size = maps.shape[axis]
        padding = [(0, 0)] * maps.ndim
        padding[axis] = (RADIUS, RADIUS)
        padded = np.moveaxis(np.pad(maps, padding), axis, -1)
        total = padded[..., :size].copy()
        for shift in range(1, 2 * RADIUS + 1):
            total += padded[..., shift : shift + size]
        maps = np.moveaxis(total, -1, axis)
    return maps * np.float32(1 / (2 * RADIUS + 1) ** 2)
