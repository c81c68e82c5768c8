"""Videos whose frames carry their own number, written by PyAV; and ways to damage them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BLOCK = 8  # pixels of one bit's side; 16 bits make a 128-pixel strip at the top
BITS = 16


def numbered_picture(number: int, width: int, height: int) -> np.ndarray:
    """A grey, slightly noisy picture with `number` in black and white blocks, top left."""
    noise = np.random.default_rng(number).integers(90, 160, (height, width, 1), dtype=np.uint8)
    picture = np.repeat(noise, 3, axis=2)
    for bit in range(BITS):
        value = 255 if number >> bit & 1 else 0
        picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = value
    return picture


def read_number(picture: np.ndarray) -> int:
    """The number burnt into a picture of any size, when it is upright."""
    scale = picture.shape[1] / 160
    number = 0
    for bit in range(BITS):
        x = int((bit + 0.5) * BLOCK * scale)
        number |= (int(picture[int(BLOCK / 2 * scale), x].mean()) > 127) << bit
    return number


def write_video(
    path: Path,
    n_frames: int,
    fps: int = 10,
    *,
    pts_ms: Sequence[int] | None = None,
    size: tuple[int, int] = (160, 96),
    options: dict[str, str] | None = None,
    gop: int = 250,
    turned: int = 0,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    encoding: dict[str, str] | None = None,
) -> Path:
    """Write H.264 (or another codec); with `pts_ms` frame i is shown at that many milliseconds.

    The pictures lie on their side by `turned` quarter turns counter-clockwise.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size if turned % 2 == 0 else size[::-1]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": "18"} | (encoding or {})
        if pts_ms is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number in range(n_frames):
            picture = np.ascontiguousarray(np.rot90(numbered_picture(number, *size), turned))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if pts_ms is not None:
                frame.pts, frame.time_base = pts_ms[number], Fraction(1, 1000)
            else:
                frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.start_encoding()  # writes the header even when there is no frame
        container.mux(stream.encode(None))
    return path


def rotate(path: Path, quarter_turns_clockwise: int) -> Path:
    """Patch the display matrix of an mp4 file's first track."""
    a, b, c, d = {0: (1, 0, 0, 1), 1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[
        quarter_turns_clockwise
    ]
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    matrix = header + (40 if data[header] == 0 else 52)  # version 0 has 32-bit times
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(
        ">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30
    )
    path.write_bytes(data)
    return path


def write_audio(path: Path) -> Path:
    """Half a second of silence, no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
