"""Draw the sprites from the Noto Color Emoji font; run once, the output is in the repository.

    python -m mrmodel.synthetic.make_sprites NotoColorEmoji.ttf

The font is in the Debian package fonts-noto-color-emoji; rendering videos does not need it.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mrmodel.errors import DataError
from mrmodel.files import atomic_path
from mrmodel.synthetic.sprites import Subject, sprite_path, subjects

# The only bitmap size of the font; FreeType rejects all others.
BITMAP_SIZE = 109
CANVAS = 2 * BITMAP_SIZE

log = logging.getLogger(__name__)


def draw_sprite(subject: Subject, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The emoji of `subject` as RGBA, cropped to its opaque part.

    Raises:
        DataError: the font has no glyph for it.
    """
    canvas = Image.new("RGBA", (CANVAS, CANVAS))
    ImageDraw.Draw(canvas).text((20, 20), subject.character, font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        raise DataError(f"the font draws nothing for {subject.name!r} (U+{subject.code})")
    return canvas.crop(box)


def write_sprites(font_path: Path) -> int:
    """Draw every subject into the package's sprites folder; returns the number of bytes written.

    Raises:
        DataError: the font cannot be read at size 109, or lacks a subject.
    """
    try:
        font = ImageFont.truetype(str(font_path), BITMAP_SIZE)
    except OSError as error:
        rule = f"not a readable colour font of bitmap size {BITMAP_SIZE}: {error}"
        raise DataError(rule, file=font_path) from error
    total = 0
    for subject in subjects():
        target = sprite_path(subject.name)
        with atomic_path(target) as temporary:
            image = draw_sprite(subject, font)
            image.save(temporary, format="WEBP", lossless=True, quality=100, method=6)
        total += target.stat().st_size
    return total


def main() -> None:
    """Command line of the module."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("font", type=Path, help="NotoColorEmoji.ttf")
    size = write_sprites(parser.parse_args().font)
    log.info("%d sprites, %d bytes", len(subjects()), size)


if __name__ == "__main__":
    main()
