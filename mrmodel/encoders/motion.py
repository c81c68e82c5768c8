"""Motion descriptor of a clip, 56 numbers: direction, speed, growth, rotation, and their variation.

The camera's motion (the median flow of a frame) is separated from the residual motion, which is
that of the objects. Every number is squashed into -1..1; a constant channel marks "nothing moves"
after the row is scaled to unit length.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mrmodel.encoders.base import Frames, Modality, Rows, check_frames, describe_encoder
from mrmodel.encoders.optical_flow import optical_flow
from mrmodel.video.sampling import FrameSampling

Floats = NDArray[np.float32]

WIDTH, HEIGHT, FRAMES = 64, 48, 10
DIRECTIONS = 8
# Pixels (at width 64) per sampled frame: below STILL is noise, above FAST is fast.
STILL, FAST = 0.3, 1.5
GRID = 3
REST = 0.25  # the constant channel


class MotionEncoder:
    """Optical-flow statistics of a clip.

    Rows hold, in this order: 8 directions x (slow, fast) of the residual motion (16); the camera's
    mean motion and its variation (4); the course of four measures of the moving part, i.e. its
    velocity (2), growth and rotation: mean, std, jerk and alternation of each (16); fraction of the
    frame that moves: mean, std, trend (3); where it moves (3 x 3) and its centre and drift (4);
    overall speed and change of brightness (3); the constant.
    """

    name: ClassVar[str] = "embedded.motion"
    modality: ClassVar[Modality] = "video"
    dim: ClassVar[int] = 56
    sampling = FrameSampling(FRAMES, (WIDTH, HEIGHT), "middle", "area")
    batch_clips: ClassVar[int] = 1

    def encode_clips(self, frames: Frames) -> Rows:
        """(n, 10, 48, 64, 3) uint8 -> (n, 56) float32 in -1..1."""
        check_frames(frames, self.sampling)
        rows = [_encode(clip) for clip in frames]
        return np.array(rows, dtype=np.float32).reshape(-1, self.dim)

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides the rows."""
        return describe_encoder(self.name, self.dim, ["numpy"], sampling=self.sampling)


def _encode(clip: Frames) -> Floats:
    grey = _grey(clip)
    flow = optical_flow(grey[:-1], grey[1:])
    camera = np.median(flow.reshape(len(flow), 2, -1), axis=2)
    rest = flow - camera[:, :, None, None]
    speed = np.hypot(rest[:, 0], rest[:, 1])
    moving = speed * (speed > STILL)
    parts = (
        _directions(rest, speed),
        _squash(np.concatenate((camera.mean(axis=0), camera.std(axis=0)))),
        _course(rest, moving),
        _extent(moving > 0),
        _places(moving),
        _overall(speed, grey),
        np.array([REST]),
    )
    return np.concatenate(parts).astype(np.float32)


def _grey(clip: Frames) -> Floats:
    """(T, H, W, 3) uint8 -> (T, H, W) luma in 0..1."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32) / np.float32(255)
    colours = clip.astype(np.float32)
    # Written out: the summation order of a matrix product may depend on the machine.
    grey: Floats = (
        colours[..., 0] * weights[0] + colours[..., 1] * weights[1] + colours[..., 2] * weights[2]
    )
    return grey


def _directions(rest: Floats, speed: Floats) -> Floats:
    """(16,) square roots of the fractions of pixels per direction, slow and fast."""
    turn = np.arctan2(rest[:, 1], rest[:, 0]) * (DIRECTIONS / (2 * np.pi))
    # The eight sectors are centred on right, down right, down ...
    sector = np.rint(turn).astype(np.int64) % DIRECTIONS
    kind = np.where(speed > FAST, sector + DIRECTIONS, sector)
    counts = np.bincount(kind[speed > STILL], minlength=2 * DIRECTIONS)
    return np.asarray(np.sqrt(counts / speed.size), dtype=np.float32)


def _course(rest: Floats, moving: Floats) -> Floats:
    """(16,) velocity, growth and rotation of the moving part: mean, std, jerk, alternation."""
    total = moving.sum(axis=(1, 2)) + 1e-6
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    centre_x = (moving * columns).sum(axis=(1, 2)) / total
    centre_y = (moving * rows).sum(axis=(1, 2)) / total
    away_x = columns - centre_x[:, None, None]
    away_y = rows - centre_y[:, None, None]
    velocity = (moving[:, None] * rest).sum(axis=(2, 3)) / total[:, None]
    own_x = rest[:, 0] - velocity[:, 0, None, None]
    own_y = rest[:, 1] - velocity[:, 1, None, None]
    radius = np.sqrt((moving * (away_x**2 + away_y**2)).sum(axis=(1, 2)) / total) + 1e-3
    growth = (moving * (own_x * away_x + own_y * away_y)).sum(axis=(1, 2)) / (total * radius)
    turning = (moving * (own_y * away_x - own_x * away_y)).sum(axis=(1, 2)) / (total * radius)
    series = np.stack((velocity[:, 0], velocity[:, 1], growth, turning))
    steps = np.diff(series, axis=1)
    power = (series**2).mean(axis=1) + STILL**2
    alternation = -(series[:, 1:] * series[:, :-1]).mean(axis=1) / power
    return np.concatenate(
        (
            _squash(series.mean(axis=1)),
            _squash(series.std(axis=1)),
            _squash(np.abs(steps).mean(axis=1)),
            alternation,
        )
    )


def _extent(moves: NDArray[np.bool_]) -> Floats:
    """(3,) fraction of the frame that moves: mean, std and trend over the clip."""
    share = moves.mean(axis=(1, 2))
    half = len(share) // 2
    trend = share[-half:].mean() - share[:half].mean()
    return np.array([np.sqrt(share.mean()), 2 * share.std(), 4 * trend]).clip(-1, 1)


def _places(moving: Floats) -> Floats:
    """(13,) fractions of the motion in a 3x3 grid, its centre, and the drift of the centre."""
    grid = moving.reshape(-1, GRID, HEIGHT // GRID, WIDTH)
    columns = np.array_split(np.arange(WIDTH), GRID)
    cells = np.stack([grid[..., part].sum(axis=(2, 3)) for part in columns], axis=2)
    amount = cells.sum() + 1e-3 * moving.size
    rows, across = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    total = moving.sum(axis=(1, 2)) + 1.0
    x = (moving * (2 * across / WIDTH - 1)).sum(axis=(1, 2)) / total
    y = (moving * (2 * rows / HEIGHT - 1)).sum(axis=(1, 2)) / total
    half = len(x) // 2
    wander = np.array([x[-half:].mean() - x[:half].mean(), y[-half:].mean() - y[:half].mean()])
    shares = cells.sum(axis=0).reshape(-1) / amount
    return np.concatenate((shares, [x.mean(), y.mean()], wander))


def _overall(speed: Floats, grey: Floats) -> Floats:
    """(3,) mean speed, its variation in time, and mean change of brightness (cuts, fades)."""
    mean = speed.mean(axis=(1, 2))
    change = np.abs(np.diff(grey, axis=0)).mean()
    return np.array([*_squash(np.array([mean.mean(), mean.std()])), np.tanh(10 * change)])


def _squash(pixels: Floats) -> Floats:
    """Pixels per step -> -1..1, steepest at low speeds."""
    return np.asarray(pixels / (FAST + np.abs(pixels)), dtype=np.float32)
