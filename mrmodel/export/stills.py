"""One picture of a video, as a JPEG file."""

from __future__ import annotations

from pathlib import Path

from av.video.reformatter import VideoReformatter
from PIL import Image

from mrmodel.errors import VideoError
from mrmodel.export.encode import decode_span
from mrmodel.export.pieces import TOLERANCE_S, Piece, Span, index_video
from mrmodel.video.decoder import TimedFrame
from mrmodel.video.sampling import FrameSampling

_QUALITY = 80


def write_still(video: Path, time_s: float, width: int, target: Path) -> None:
    """Write what a player shows at a time.

    Args:
        video: the file.
        time_s: in a player's seconds; the first picture stands for what is before it, the last one
            for what is after it.
        width: pixels of the picture; its height follows.
        target: the JPEG file.

    Raises:
        VideoError: the file cannot be read, or no picture at that time be decoded.
    """
    index = index_video(video)
    times = index.frame_times_s()
    time_s = min(max(time_s, float(times[0])), float(times[-1]))
    span = Span(time_s, time_s + 3 * TOLERANCE_S)
    piece = Piece(video, index, span.start_s, span.end_s)
    shown = (one.frame for one in decode_span(piece, span) if one.kind == "video")
    picture = next(shown, None)
    if picture is None:
        raise VideoError(video, "no_frames", f"no picture at {time_s:.1f} s can be decoded")
    frame = TimedFrame(time_s, 0.0, picture)
    columns, rows = frame.upright_size
    # Turned pictures have turned pixels.
    turned = columns != picture.width
    shape = 1 / index.pixel_aspect if turned else index.pixel_aspect
    height = max(1, round(width * rows / (columns * float(shape))))
    sampling = FrameSampling(1, (width, height), "middle", "bilinear")
    image = frame.to_rgb((width, height), sampling, VideoReformatter())
    Image.fromarray(image).save(target, format="JPEG", quality=_QUALITY)
