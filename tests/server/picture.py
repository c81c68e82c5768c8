"""Makes docs/page.png from a running `make demo`: ``python -m tests.server.picture ADDRESS``."""

import io
import sys
from pathlib import Path

from PIL import Image

from tests.browser import chromium, opened

VIDEO = "test-0000.mp4"
QUERIES = ["Among the planets there is a turkey", "A view of a turkey in the desert"]
SIZE = {"width": 1280, "height": 940}
TARGET = Path(__file__).parents[2] / "docs/page.png"


def main(address: str) -> None:
    """Search one video for two sentences, choose and accept a moment, and take a picture."""
    with chromium() as browser, opened(browser, address, viewport=SIZE) as (page, _):
        page.click(f".video[title='{VIDEO}']")
        page.locator(".query").first.fill(QUERIES[0])
        page.click("#add-query")
        page.locator(".query").nth(1).fill(QUERIES[1])
        page.click("#go")
        page.click(".timeline >> nth=0 >> .block >> nth=0")
        page.click(".moment.picked .accept")
        page.wait_for_selector(".moment[data-verdict]")
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        page.mouse.move(0, 0)
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(1000)  # Changes of colours end.
        shown = Image.open(io.BytesIO(page.screenshot()))
    shown.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(TARGET, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
