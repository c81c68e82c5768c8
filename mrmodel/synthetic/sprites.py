"""The sprites: one lossless WebP per subject, drawn by `make_sprites` and kept in the package.

A subject of subjects.json has a name, the phrase used in sentences (article included), a kind and
the code points of its emoji. Artwork: Noto Color Emoji, see NOTICE.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that a video can show: `code` is its code points in hex, joined by ``-``."""

    name: str
    phrase: str
    kind: str
    code: str

    @property
    def character(self) -> str:
        """The emoji as text."""
        return "".join(chr(int(point, 16)) for point in self.code.split("-"))


@cache
def subjects() -> tuple[Subject, ...]:
    """All subjects, in file order, which determines the held-out ones."""
    rows = json.loads((FOLDER / "subjects.json").read_text(encoding="utf-8"))
    return tuple(Subject(**row) for row in rows)


def sprite_path(name: str) -> Path:
    """Path of the sprite of the subject `name`."""
    return FOLDER / "sprites" / f"{name.replace(' ', '_')}.webp"


@cache
def sprite(name: str) -> Image.Image:
    """The cropped RGBA image of a subject, about 128 pixels on its longer side."""
    with Image.open(sprite_path(name)) as image:
        return image.convert("RGBA")
