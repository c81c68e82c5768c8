"""Procedural backgrounds of the places, slightly different in every video.

A scene is painted at twice its size and downscaled for antialiasing, and gets grain, so that
camera motion is measurable everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
OVERSAMPLING = 2
GRAIN = 4  # grey levels, plus or minus


class Brush:
    """Paints on a canvas whose corners are (0, 0) and (1, 1)."""

    def __init__(self, size: tuple[int, int], rng: Random) -> None:
        self.size, self.rng = size, rng
        self.image = Image.new("RGB", size)
        self._draw = ImageDraw.Draw(self.image)
        self._tint = [rng.uniform(-14, 14) for _ in range(3)]

    def colour(self, colour: Colour, spread: float = 0.0) -> Colour:
        """`colour` with this video's tint, up to `spread` levels lighter or darker."""
        shift = self.rng.uniform(-spread, spread)
        red, green, blue = (
            min(max(round(level + tint + shift), 0), 255)
            for level, tint in zip(colour, self._tint, strict=True)
        )
        return red, green, blue

    def gradient(self, top: float, bottom: float, first: Colour, last: Colour) -> None:
        """Fill the band from `top` to `bottom` with a vertical gradient."""
        width, height = self.size
        begin, end = round(top * height), round(bottom * height)
        share = np.linspace(0, 1, max(end - begin, 1))[:, None, None]
        rows = np.array(self.colour(first)) * (1 - share) + np.array(self.colour(last)) * share
        band = np.broadcast_to(rows.round().astype(np.uint8), (len(rows), width, 3))
        self.image.paste(Image.fromarray(np.ascontiguousarray(band)), (0, begin))

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """Fill the polygon."""
        self._draw.polygon([self._pixel(x, y) for x, y in points], fill=colour)

    def ellipse(self, x: float, y: float, radius: float, colour: Colour, flat: float = 1) -> None:
        """Fill an ellipse of half width `radius` (fraction of the height), `flat` times as high."""
        (cx, cy), r = self._pixel(x, y), radius * self.size[1]
        self._draw.ellipse((cx - r, cy - r * flat, cx + r, cy + r * flat), fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill a rectangle."""
        self._draw.rectangle((*self._pixel(left, top), *self._pixel(right, bottom)), fill=colour)

    def line(self, points: list[tuple[float, float]], colour: Colour, width: float) -> None:
        """Draw a line, `width` as a fraction of the height."""
        pixels = [self._pixel(x, y) for x, y in points]
        self._draw.line(pixels, fill=colour, width=max(round(width * self.size[1]), 1))

    def hills(self, base: float, rise: float, colour: Colour, waves: float = 1.5) -> None:
        """Fill everything below a wavy line at `base`, up to `rise` higher."""
        phases = [self.rng.uniform(0, math.tau) for _ in range(2)]
        line = [
            (
                x / 40,
                base
                - rise * (0.5 + 0.3 * math.sin(math.tau * waves * x / 40 + phases[0]))
                - rise * 0.2 * math.sin(math.tau * waves * 2.3 * x / 40 + phases[1]),
            )
            for x in range(41)
        ]
        self.polygon([*line, (1, 1), (0, 1)], colour)

    def _pixel(self, x: float, y: float) -> tuple[float, float]:
        return x * self.size[0], y * self.size[1]


def paint_scene(place: str, size: tuple[int, int], rng: Random) -> Image.Image:
    """A background of `size` (width, height) for one of vocabulary.PLACES, varied by `rng`."""
    brush = Brush((size[0] * OVERSAMPLING, size[1] * OVERSAMPLING), rng)
    PAINTERS[place](brush)
    pixels = np.asarray(brush.image.reduce(OVERSAMPLING), dtype=np.int16)
    grain = np.random.default_rng(rng.getrandbits(63)).integers(
        -GRAIN, GRAIN + 1, pixels.shape[:2], dtype=np.int16
    )
    return Image.fromarray((pixels + grain[:, :, None]).clip(0, 255).astype(np.uint8))


def _beach(brush: Brush) -> None:
    rng = brush.rng
    horizon = rng.uniform(0.36, 0.44)
    brush.gradient(0, horizon, (110, 185, 240), (205, 232, 250))
    brush.ellipse(rng.uniform(0.1, 0.9), 0.14, 0.08, brush.colour((255, 236, 150)))
    brush.gradient(horizon, 0.72, (25, 110, 175), (75, 185, 205))
    for _ in range(26):
        x, y, length = rng.random(), rng.uniform(horizon + 0.02, 0.62), rng.uniform(0.02, 0.08)
        brush.line([(x, y), (x + length, y)], brush.colour((165, 220, 232), 20), 0.006)
    brush.hills(0.68, 0.05, brush.colour((240, 248, 250)))
    brush.hills(0.7, 0.05, brush.colour((232, 208, 150)))
    for _ in range(150):
        x, y = rng.random(), rng.uniform(0.7, 1)
        brush.ellipse(x, y, 0.006, brush.colour((196, 168, 110), 25), 0.6)


def _forest(brush: Brush) -> None:
    rng = brush.rng
    brush.gradient(0, 0.85, (150, 195, 160), (200, 220, 180))
    for depth in range(3):
        shade = 34 * (2 - depth)
        for _ in range(9):
            x, half = rng.random(), 0.012 + 0.008 * depth
            foot = 0.66 + 0.07 * depth
            trunk = brush.colour((78 + shade, 58 + shade, 40 + shade), 10)
            brush.box(x - half, 0, x + half, foot, trunk)
            for _ in range(6):
                leaf = brush.colour((28 + shade, 92 + shade, 40 + shade), 16)
                place = (x + rng.uniform(-0.08, 0.08), rng.uniform(-0.05, 0.32))
                brush.ellipse(*place, rng.uniform(0.05, 0.12), leaf, 0.8)
    brush.hills(0.8, 0.05, brush.colour((62, 104, 48)))
    for _ in range(220):
        x, y = rng.random(), rng.uniform(0.78, 1)
        blade = brush.colour((60, 120, 50), 35)
        brush.line([(x, y), (x + rng.uniform(-0.01, 0.01), y - 0.04)], blade, 0.007)


def _desert(brush: Brush) -> None:
    rng = brush.rng
    brush.gradient(0, 0.7, (235, 165, 95), (253, 225, 170))
    brush.ellipse(rng.uniform(0.15, 0.85), rng.uniform(0.12, 0.3), 0.1, (255, 246, 205))
    for depth, colour in enumerate([(216, 152, 90), (200, 128, 68), (180, 106, 52)]):
        brush.hills(0.55 + 0.14 * depth, 0.16, brush.colour(colour), rng.uniform(0.8, 1.6))
    for _ in range(rng.randint(2, 4)):
        _cactus(brush, rng.random(), rng.uniform(0.62, 0.85))
    for _ in range(120):
        x, y = rng.random(), rng.uniform(0.8, 1)
        brush.line([(x, y), (x + 0.03, y + 0.004)], brush.colour((150, 86, 40), 20), 0.006)


def _cactus(brush: Brush, x: float, foot: float) -> None:
    green = brush.colour((62, 120, 66), 12)
    brush.line([(x, foot), (x, foot - 0.24)], green, 0.04)
    brush.line([(x, foot - 0.08), (x - 0.04, foot - 0.08), (x - 0.04, foot - 0.17)], green, 0.03)
    brush.line([(x, foot - 0.12), (x + 0.04, foot - 0.12), (x + 0.04, foot - 0.2)], green, 0.03)


def _snow(brush: Brush) -> None:
    rng = brush.rng
    brush.gradient(0, 0.7, (150, 180, 212), (222, 232, 242))
    for _ in range(4):
        x, top, half = rng.random(), rng.uniform(0.08, 0.28), rng.uniform(0.15, 0.28)
        brush.polygon([(x - half, 0.62), (x, top), (x + half, 0.62)], brush.colour((120, 138, 165)))
        cap = 0.3
        peak = [(x - half * cap, top + (0.62 - top) * cap), (x, top)]
        brush.polygon([*peak, (x + half * cap, top + (0.62 - top) * cap)], (246, 249, 252))
    brush.hills(0.62, 0.06, (226, 234, 243))
    for _ in range(rng.randint(4, 7)):
        x, foot = rng.random(), rng.uniform(0.62, 0.78)
        for step in range(3):
            half, top = 0.02 + 0.012 * step, foot - 0.2 + 0.05 * step
            tree = [(x - half, top + 0.09), (x, top), (x + half, top + 0.09)]
            brush.polygon(tree, brush.colour((52, 92, 84), 8))
    brush.hills(0.84, 0.06, (240, 244, 249))
    for _ in range(160):
        flake = rng.uniform(0.004, 0.011)
        brush.ellipse(rng.random(), rng.random(), flake, (255, 255, 255))


def _city(brush: Brush) -> None:
    rng = brush.rng
    brush.gradient(0, 0.83, (14, 16, 44), (62, 44, 96))
    brush.ellipse(rng.uniform(0.1, 0.9), 0.12, 0.06, (238, 236, 214))
    left = -0.03
    while left < 1:
        width, top = rng.uniform(0.07, 0.14), rng.uniform(0.15, 0.5)
        brush.box(left, top, left + width, 0.82, brush.colour((30, 32, 52), 12))
        for row in range(int((0.78 - top) / 0.055)):
            for column in range(int(width / 0.026)):
                if rng.random() < 0.55:
                    x, y = left + 0.008 + 0.026 * column, top + 0.02 + 0.055 * row
                    brush.box(x, y, x + 0.012, y + 0.026, brush.colour((246, 206, 110), 35))
        left += width + 0.006
    brush.box(0, 0.82, 1, 1, brush.colour((44, 44, 52)))
    brush.box(0, 0.81, 1, 0.83, brush.colour((120, 118, 116)))
    for step in range(9):
        brush.box(step / 8, 0.91, step / 8 + 0.06, 0.925, brush.colour((222, 214, 172)))


def _underwater(brush: Brush) -> None:
    rng = brush.rng
    brush.gradient(0, 1, (70, 190, 205), (8, 52, 110))
    for _ in range(5):
        x, width = rng.random(), rng.uniform(0.02, 0.06)
        ray = [(x, 0), (x + width, 0), (x + width - 0.22, 0.75), (x - 0.3, 0.75)]
        brush.polygon(ray, brush.colour((76, 170, 192), 8))
    brush.hills(0.86, 0.06, brush.colour((158, 150, 112)))
    for _ in range(14):
        x, foot, sway = rng.random(), rng.uniform(0.86, 1), rng.uniform(0.2, 0.9)
        weed = brush.colour((24, 122, 80), 25)
        height = rng.uniform(0.15, 0.32)
        stem = [(x + 0.014 * math.sin(9 * sway + k), foot - height * k / 6) for k in range(7)]
        brush.line(stem, weed, 0.022)
    for _ in range(40):
        bubble = rng.uniform(0.004, 0.014)
        brush.ellipse(rng.random(), rng.uniform(0.02, 0.85), bubble, brush.colour((180, 228, 236)))


def _space(brush: Brush) -> None:
    rng = brush.rng
    brush.gradient(0, 1, (6, 6, 22), (30, 12, 50))
    for _ in range(230):
        star = rng.choice([0.003, 0.003, 0.005, 0.007])
        brush.ellipse(rng.random(), rng.random(), star, brush.colour((225, 225, 235), 30))
    for colour in rng.sample([(196, 110, 70), (92, 140, 196), (170, 150, 108), (120, 92, 160)], 2):
        x, y, radius = rng.random(), rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.2)
        brush.ellipse(x, y, radius, brush.colour(colour))
        for step in range(3):
            low = y + radius * (0.45 * step - 0.4)
            brush.ellipse(x, low, radius * 0.8, brush.colour(colour, 30), 0.12)


def _room(brush: Brush) -> None:
    rng = brush.rng
    paper = rng.choice([(206, 186, 168), (176, 194, 176), (188, 182, 208)])
    brush.gradient(0, 0.72, paper, paper)
    for step in range(17):
        brush.box(step / 16, 0, step / 16 + 0.02, 0.7, brush.colour(paper, 14))
    x = rng.uniform(0.05, 0.6)
    brush.box(x, 0.1, x + 0.28, 0.44, (246, 244, 238))
    brush.box(x + 0.015, 0.13, x + 0.132, 0.41, brush.colour((158, 208, 240)))
    brush.box(x + 0.148, 0.13, x + 0.265, 0.41, brush.colour((158, 208, 240)))
    brush.box(0, 0.7, 1, 0.74, (236, 230, 220))
    brush.gradient(0.74, 1, (150, 104, 66), (120, 80, 50))
    for step in range(12):
        brush.line([(step / 11, 0.74), (step / 11 * 1.6 - 0.3, 1)], (104, 68, 42), 0.006)
    lamp = (x + 0.5) % 1
    brush.line([(lamp, 0.4), (lamp, 0.8)], (84, 70, 62), 0.014)
    shade = [(lamp - 0.06, 0.42), (lamp - 0.03, 0.26), (lamp + 0.03, 0.26), (lamp + 0.06, 0.42)]
    brush.polygon(shade, brush.colour((240, 214, 140), 15))
    brush.ellipse(0.5, 0.9, 0.5, brush.colour((158, 62, 62), 12), 0.16)
    brush.ellipse(0.5, 0.9, 0.4, brush.colour((192, 108, 92), 12), 0.14)


PAINTERS: dict[str, Callable[[Brush], None]] = {
    "beach": _beach,
    "forest": _forest,
    "desert": _desert,
    "snow": _snow,
    "city": _city,
    "underwater": _underwater,
    "space": _space,
    "room": _room,
}
