"""Decoding with PyAV: frames of a file in time order, packet by packet, within limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from mrmodel.errors import VideoError
from mrmodel.video.bicubic import resize_bicubic
from mrmodel.video.remote import RemoteVideo, is_pointer
from mrmodel.video.sampling import FrameSampling
from mrmodel.video.skipping import Skipping, Wanted

_FILTERS = {
    "bicubic": Interpolation.BICUBIC,
    "bilinear": Interpolation.BILINEAR,
    "area": Interpolation.AREA,
}
# Bit-exact scaling: without it the pixels depend on the SIMD set of the machine.
_EXACT = Interpolation.BITEXACT | Interpolation.ACCURATE_RND

# Encoders put sound a few hundredths of a second before the first picture.
MIN_LATE_S = 0.1


def _everything(_start_s: float, _end_s: float) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """Limits of a file: seconds of video, and pixels of one frame."""

    max_duration_s: float = 4 * 3600.0
    max_pixels: int = 7680 * 4320


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """A frame, shown from `time_s` for `duration_s` seconds (0 if unknown).

    `picture` is None if the frame was not needed and not decoded.
    """

    time_s: float
    duration_s: float
    picture: Any
    scaler: VideoReformatter

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) in pixels after the file's rotation is applied."""
        width, height = self.picture.width, self.picture.height
        return (height, width) if self._quarter_turns() % 2 else (width, height)

    def to_rgb(self, size: tuple[int, int], sampling: FrameSampling) -> NDArray[np.uint8]:
        """The upright image at `size` (width, height): (H, W, 3) uint8 RGB.

        `sampling` determines the scaling filter, and squashing or cropping to the size.
        """
        if sampling.fit == "squash":
            return self._scaled(size, sampling)
        side, (width, height) = size[0], self.upright_size
        if height >= width:
            scaled = self._scaled((side, int(height * side / width)), sampling)
        else:
            scaled = self._scaled((int(width * side / height), side), sampling)
        top, left = (int((length - side) / 2) for length in scaled.shape[:2])
        return np.ascontiguousarray(scaled[top : top + side, left : left + side])

    def _scaled(self, size: tuple[int, int], sampling: FrameSampling) -> NDArray[np.uint8]:
        turns = self._quarter_turns()
        plain = sampling.resize == "bicubic_no_antialias"
        wanted = self.upright_size if plain else size
        width, height = wanted[::-1] if turns % 2 else wanted
        scaled = self.scaler.reformat(
            self.picture,
            width=width,
            height=height,
            format="rgb24",
            interpolation=_FILTERS.get(sampling.resize, Interpolation.BICUBIC) | _EXACT,
            threads=1,
        )
        upright = np.rot90(np.asarray(scaled.to_ndarray(), dtype=np.uint8), turns)
        if plain:
            upright = resize_bicubic(upright, size)
        return np.ascontiguousarray(upright)

    def _quarter_turns(self) -> int:
        # The file's angle is counter-clockwise, as in np.rot90.
        turns: int = round(self.picture.rotation / 90)
        return turns % 4


class Decoder:
    """A single pass over one file.

    The attributes are final after `frames` is exhausted.

    Attributes:
        width, height: upright size in pixels of the first frame, 0 before it.
        container_s: length of the video by the file's header, 0 if missing.
        late_s: seconds from the start of the file to the first picture, where a player's clock
            starts; 0 below `MIN_LATE_S`.
        frame_rate: average frames per second by the file's header; 30 if missing.
        bad_packets: number of packets with decoding errors.
        cut_off: the container ended prematurely.
    """

    def __init__(self, path: Path, limits: VideoLimits) -> None:
        self.path, self.limits = path, limits
        self.width = self.height = 0
        self.container_s = self.late_s = 0.0
        self.frame_rate = 30.0
        self.bad_packets = 0
        self.cut_off = False
        self._last_end_s = 0.0
        self._remote: RemoteVideo | None = None
        self._scaler = VideoReformatter()

    def frames(self, wanted: Wanted = _everything) -> Iterator[TimedFrame]:
        """Yield all decodable frames in time order.

        Args:
            wanted: called with the display interval (start_s, end_s) of a frame, returns whether it
                is needed; other frames may lack a picture, and damage to them is not detected.

        Raises:
            VideoError: see `FrameSource.clips`.
        """
        previous_s: float | None = None
        gap_s = 0.0
        with self._opened() as container:
            stream = self._video_stream(container)
            start_s = _seconds(stream.start_time, stream.time_base)
            self.late_s = _late_s(container, start_s)
            skipping = Skipping(stream.codec_context.name, wanted)
            for stamp, duration, picture in self._pictures(container, stream, skipping):
                # The stream's time base: drained frames lack their own.
                stamp_s = _seconds(stamp, stream.time_base)
                if stamp_s is None:  # raw streams: consecutive frames
                    time_s = 0.0 if previous_s is None else previous_s + gap_s
                else:
                    start_s = stamp_s if start_s is None else start_s
                    time_s = stamp_s - start_s
                    if previous_s is None:
                        scale = float(stream.time_base)
                        skipping.begin(partial(_time, scale, start_s), picture.interlaced_frame)
                if previous_s is not None:
                    if time_s <= previous_s:
                        continue  # skip a damaged or repeated time stamp
                    gap_s = time_s - previous_s
                previous_s = time_s
                shown_s = _seconds(duration, stream.time_base) or gap_s
                yield self._checked(TimedFrame(time_s, shown_s, picture, self._scaler))
        if previous_s is None:
            raise VideoError(self.path, "no_frames", "not one frame could be decoded")

    def duration_s(self) -> float:
        """End of the last frame; from the header if frames have no duration."""
        return self._last_end_s or self.container_s

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        self._remote = RemoteVideo(self.path) if is_pointer(self.path) else None
        try:
            # Absolute: FFmpeg takes what stands before a colon for a protocol, if no slash does.
            source = self._remote or str(self.path.absolute())
            with self._container(source) as container:
                self._require_read()
                yield container
        finally:
            if self._remote is not None:
                self._remote.close()

    def _container(self, source: RemoteVideo | str) -> Any:
        try:
            return av.open(source, metadata_errors="replace")
        except (av.error.FFmpegError, OSError) as error:
            self._require_read()
            raise self._not_opened(error) from error

    def _not_opened(self, error: Exception) -> VideoError:
        if isinstance(error, av.error.FileNotFoundError):
            return VideoError(self.path, "not_found", "no such file")
        if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
            detail = "not a video, or its index is lost (a download that broke off?)"
            return VideoError(self.path, "invalid_data", detail)
        return VideoError(self.path, "unreadable", getattr(error, "strerror", None) or str(error))

    def _require_read(self) -> None:
        """Raise an error of reading from S3, which FFmpeg takes for the end of the video."""
        if self._remote is not None and self._remote.error is not None:
            raise self._remote.error

    def _video_stream(self, container: Any) -> Any:
        stream = container.streams.best("video")
        if stream is None:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
            raise VideoError(self.path, "no_video_stream", f"streams in the file: {kinds}")
        if stream.codec_context is None:
            raise VideoError(self.path, "no_decoder", "FFmpeg has no decoder for its codec")
        # Threads do not speed up small frames; extraction runs one process per core instead.
        stream.codec_context.thread_count = 1
        self.container_s = _stated_duration_s(container, stream)
        self.frame_rate = float(stream.average_rate or self.frame_rate)
        self._check_duration(self.container_s)
        self._check_pixels(stream.codec_context.width, stream.codec_context.height)
        return stream

    def _pictures(
        self, container: Any, stream: Any, skipping: Skipping
    ) -> Iterator[tuple[int | None, int | None, Any]]:
        """Time stamp, duration and picture of each frame, including skipped ones."""
        context = stream.codec_context
        for packet in chain(skipping.look_ahead(self._packets(container, stream)), [None]):
            skip = packet is not None and skipping.may_skip(packet)
            context.skip_frame = "NONREF" if skip else "DEFAULT"
            try:
                for picture in context.decode(packet):
                    if picture.interlaced_frame:
                        skipping.end()
                    for stamp, duration in skipping.before(picture.pts):
                        yield stamp, duration, None
                    yield picture.pts, picture.duration, picture
            except av.error.FFmpegError:
                self.bad_packets += 1
            else:
                if skip:
                    skipping.leave_out(packet)
        for stamp, duration in skipping.rest():
            yield stamp, duration, None

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                self.cut_off = True
                packet = None
            self._require_read()
            if packet is None:
                return
            if packet.size:  # an empty packet would signal the end of the file to the decoder
                yield packet

    def _checked(self, frame: TimedFrame) -> TimedFrame:
        self._check_duration(frame.time_s)
        self._last_end_s = frame.time_s + frame.duration_s
        if frame.picture is None:
            return frame
        self._check_pixels(frame.picture.width, frame.picture.height)
        if not self.width:
            self.width, self.height = frame.upright_size
        return frame

    def _check_duration(self, seconds: float) -> None:
        limit = self.limits.max_duration_s
        if seconds > limit:
            detail = f"{seconds:.1f} s of video, the limit is {limit:.1f} s"
            raise VideoError(self.path, "too_long", detail)

    def _check_pixels(self, width: int, height: int) -> None:
        limit = self.limits.max_pixels
        if width * height > limit:
            detail = f"{width}x{height} is {width * height} pixels, the limit is {limit}"
            raise VideoError(self.path, "too_many_pixels", detail)


def _stated_duration_s(container: Any, stream: Any) -> float:
    track_s = _seconds(stream.duration, stream.time_base)
    if track_s is not None:
        return track_s
    if container.duration is None:
        return 0.0
    # Without a track length (Matroska) the header counts from zero, our times from the start.
    start_s = _seconds(stream.start_time, stream.time_base) or 0.0
    return max(0.0, float(container.duration / av.time_base) - max(0.0, start_s))


def _late_s(container: Any, start_s: float | None) -> float:
    if start_s is None or container.start_time is None:
        return 0.0
    late_s = start_s - float(container.start_time / av.time_base)
    return late_s if late_s >= MIN_LATE_S else 0.0


def _time(scale: float, start_s: float, stamp: int) -> float:
    return stamp * scale - start_s


def _seconds(ticks: int | None, time_base: Any) -> float | None:
    return None if ticks is None or time_base is None else float(ticks * time_base)
