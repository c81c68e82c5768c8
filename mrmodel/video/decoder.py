"""Decoding with PyAV: frames of a file in time order, packet by packet, within limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from mrmodel.errors import VideoError
from mrmodel.video.bicubic import resize_bicubic
from mrmodel.video.container import LOST_INDEX, TimeLimit, open_container
from mrmodel.video.file_length import Seekable, is_appended, is_cut
from mrmodel.video.remote import RemoteVideo, is_pointer
from mrmodel.video.sampling import FrameSampling
from mrmodel.video.skipping import Skipping, Wanted
from mrmodel.video.timeline import Part, Timeline, is_cover, read_shortly

_FILTERS = {
    "bicubic": Interpolation.BICUBIC,
    "bilinear": Interpolation.BILINEAR,
    "area": Interpolation.AREA,
}
# Bit-exact scaling: without it the pixels depend on the SIMD set of the machine.
_EXACT = Interpolation.BITEXACT | Interpolation.ACCURATE_RND

# Encoders put sound a few hundredths of a second before the first picture.
MIN_LATE_S = 0.1
# A file that ends this much before the end stated in its header is truncated.
TRUNCATION_TOLERANCE_S = 1.0
MAX_REPEATED_SHARE = 0.1
# Frames without a time stamp for longer are timed by the frame rate alone. In transport streams one
# in 0.7 s has a stamp.
_LONGEST_UNTIMED_S = 1.0
# From a frame without a time stamp, whose time is an estimate, to a stamp that is not after it.
_LEAST_STEP_S = 1e-4

# Codecs of still images, of which films are made as well.
_STILLS = ("bmp", "jpeg2000", "jpegls", "jpegxl", "mjpeg", "png", "tiff", "webp")


def _everything(_start_s: float, _end_s: float) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """Limits of a file: seconds of video, pixels of one frame, and seconds that reading it takes.

    A longer gap than `max_gap_s` between frames is closed where it may come from a broken clock
    (see `timeline`). `timeout_s` does not count the time in which the frames are used.
    """

    max_duration_s: float = 4 * 3600.0
    max_pixels: int = 7680 * 4320
    max_gap_s: float = 10.0
    timeout_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """A frame, shown from `time_s` for `duration_s` seconds (0 if unknown).

    `picture` is None if the frame was not needed and not decoded.
    """

    time_s: float
    duration_s: float
    picture: Any

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) in pixels after the file's rotation is applied."""
        width, height = self.picture.width, self.picture.height
        return (height, width) if self._quarter_turns() % 2 else (width, height)

    def to_rgb(
        self, size: tuple[int, int], sampling: FrameSampling, scaler: VideoReformatter
    ) -> NDArray[np.uint8]:
        """The upright image at `size` (width, height): (H, W, 3) uint8 RGB.

        Args:
            size: see above.
            sampling: determines the scaling filter, and squashing or cropping to the size.
            scaler: fast for many frames of one size.
        """
        if sampling.fit == "squash":
            return self._scaled(size, sampling, scaler)
        side, (width, height) = size[0], self.upright_size
        if height >= width:
            scaled = self._scaled((side, int(height * side / width)), sampling, scaler)
        else:
            scaled = self._scaled((int(width * side / height), side), sampling, scaler)
        top, left = (int((length - side) / 2) for length in scaled.shape[:2])
        return np.ascontiguousarray(scaled[top : top + side, left : left + side])

    def _scaled(
        self, size: tuple[int, int], sampling: FrameSampling, scaler: VideoReformatter
    ) -> NDArray[np.uint8]:
        turns = self._quarter_turns()
        plain = sampling.resize == "bicubic_no_antialias"
        wanted = self.upright_size if plain else size
        width, height = wanted[::-1] if turns % 2 else wanted
        scaled = scaler.reformat(
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
        flawed: the decoder found errors in pictures or packets, or time stamps that go back; which
            picture stands for a lost one may then depend on the frames that `frames` skipped.
        cut_off: the file ends, or cannot be read further, before the end that it states.
        parts: see `Timeline`; one for a file whose clock never breaks.
        n_untimed: frames without a usable time stamp, timed by the frame rate.
        untimed: they are so many that their times depend on it.
        n_unseen: frames left out because their time stamps go back. Those that repeat a stamp are
            never displayed, and count only where they are many.
    """

    def __init__(self, path: Path, limits: VideoLimits) -> None:
        self.path, self.limits = path, limits
        self.width = self.height = 0
        self.container_s = self.late_s = 0.0
        self.frame_rate = 30.0
        self.bad_packets = 0
        self.flawed = False
        self.cut_off = False
        self.parts: tuple[Part, ...] = ()
        self.n_untimed = self.n_unseen = 0
        self.untimed = False
        self._last_end_s = 0.0
        self._too_large = False
        self._remote: RemoteVideo | None = None
        self._time = TimeLimit(path, limits.timeout_s)

    def frames(self, wanted: Wanted = _everything) -> Iterator[TimedFrame]:
        """Yield all decodable frames in time order.

        Args:
            wanted: called with the display interval (start_s, end_s) of a frame, returns whether it
                is needed; other frames may lack a picture, and damage to them is not detected.

        Raises:
            VideoError: see `FrameSource.clips`.
        """
        previous, previous_s = 0, -math.inf
        last_found, guessed = 0, False
        gap_s = untimed_s = 0.0
        n_frames = n_repeated = 0
        with self.opened() as container:
            self._time.start()
            stream = self.video_stream(container)
            self._check_header(stream)
            timeline = Timeline(container, stream, self.limits.max_gap_s)
            # The stream's time base: drained frames lack their own.
            time_base = stream.time_base
            start_s = _seconds(stream.start_time, time_base)
            self.late_s = late_start_s(container, start_s)
            if timeline.by_decoding_time:
                start_s = None  # It counts another way.
            skipping = Skipping(stream.codec_context.name, wanted)
            for found, duration, picture in self._pictures(container, stream, skipping, timeline):
                stamp, timed = found, found is not None or timeline.by_decoding_time
                if stamp is None:
                    after = previous + (duration or timeline.period)
                    stamp = after if n_frames else stream.start_time or 0
                stamp_s = float(stamp * time_base)
                start_s = stamp_s if start_s is None else start_s
                if found is not None and self.n_untimed == n_frames > 0:
                    # The first with a stamp: those before it were earlier by the frame rate.
                    start_s = stamp_s - self._last_end_s
                time_s = stamp_s - start_s
                if not timed:
                    self.n_untimed += 1
                    untimed_s += float((duration or timeline.period) * time_base)
                    self.untimed = self.untimed or untimed_s > _LONGEST_UNTIMED_S
                    guessed = True
                elif guessed and stamp > last_found:
                    guessed = time_s <= previous_s
                    time_s = max(time_s, previous_s + _LEAST_STEP_S)
                    untimed_s = 0.0
                last_found = last_found if found is None else found
                if not n_frames and found is not None:
                    scale = float(time_base)
                    skipping.begin(partial(_time, scale, start_s), picture.interlaced_frame)
                n_frames += picture is not None
                if time_s <= previous_s:
                    if picture is not None:  # Frames that were skipped may be output twice.
                        self.n_unseen += time_s < previous_s
                        n_repeated += time_s == previous_s
                    continue
                gap_s = time_s - previous_s if previous_s >= 0 else 0.0
                previous, previous_s = stamp, time_s
                shown_s = _seconds(duration, time_base) or gap_s
                frame = self._checked(TimedFrame(time_s, shown_s, picture))
                self._time.stop()
                yield frame
                self._time.start()
            if not n_frames:
                raise self._no_frames()
            self.parts = tuple(timeline.parts)
            if timeline.by_rate:
                self.n_untimed = n_frames
            self.untimed = self.untimed or bool(timeline.unstamped) or self.n_untimed == n_frames
            if n_repeated > MAX_REPEATED_SHARE * n_frames:
                self.n_unseen += n_repeated
            self.flawed = self.flawed or bool(self.bad_packets or self.n_unseen)
            self.cut_off = self.cut_off or self._ends_early(container, timeline, stream.frames)

    def length_s(self) -> float:
        """Seconds of video by the time stamps of the packets, without decoding; 0 if unknown.

        Raises:
            VideoError: the file cannot be read, or has no video stream.
        """
        with self.opened() as container:
            stream = self.video_stream(container)
            self.late_s = late_start_s(container, _seconds(stream.start_time, stream.time_base))
            if read_shortly(container, stream, self.limits.max_gap_s):
                timeline = self._timeline(container, stream)
                if timeline.length_s and len(timeline.parts) == 1:
                    return timeline.length_s
        # The clock breaks, and every packet says something about it.
        with self.opened() as container:
            return self._timeline(container, self.video_stream(container)).length_s

    def duration_s(self) -> float:
        """End of the last frame; from the header if frames have no duration."""
        return self._last_end_s or self.container_s

    def _no_frames(self) -> VideoError:
        if self._of_file(is_cut):
            return VideoError(self.path, "invalid_data", LOST_INDEX)
        limit = self.limits.max_pixels
        if self._too_large:
            rule = f"all frames have more than {limit} pixels, the limit"
            return VideoError(self.path, "too_many_pixels", rule)
        rule = f"not one frame could be decoded, or all have more than {limit} pixels"
        return VideoError(self.path, "no_frames", rule)

    def _ends_early(self, container: Any, timeline: Timeline, n_stated: int) -> bool:
        """Whether frames are missing at the end. The header's length is a hint only.

        Some containers state one length for all streams, and some headers are wrong. `n_stated` is
        the header's number of frames.
        """
        end_s = self.duration_s()
        if end_s < timeline.length_s - TRUNCATION_TOLERANCE_S:
            return True
        if timeline.goes_on or self._of_file(partial(is_appended, read_to=timeline.read_to)):
            return True
        missing_s = self.container_s - end_s
        complete = missing_s <= 2 * timeline.period_s and timeline.n_packets >= n_stated
        if len(timeline.parts) > 1 or complete:
            return False
        cut = self._of_file(is_cut)
        if cut is not None:
            return cut
        if missing_s <= TRUNCATION_TOLERANCE_S or container.duration is None:
            return False
        stated_s = float(container.duration / av.time_base)
        if not container.format.name.startswith("matroska"):
            stated_s += float((container.start_time or 0) / av.time_base)
        return timeline.reached_s() < stated_s - TRUNCATION_TOLERANCE_S

    def _of_file(self, question: Callable[[Seekable], bool | None]) -> bool | None:
        """Ask something of the file's bytes."""
        if self._remote is not None:  # FFmpeg reads no more of it.
            answer = question(self._remote)
            self._require_read()
            return answer
        with self.path.open("rb") as file:
            return question(file)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """The file, opened by PyAV until the block ends.

        Raises:
            VideoError: see `FrameSource.clips`.
        """
        limits = self.limits
        self._time = TimeLimit(self.path, limits.timeout_s)
        self._remote = None
        if is_pointer(self.path):
            self._remote = RemoteVideo(self.path, self._time.require)
        try:
            try:
                container = open_container(self.path, self._remote, limits.max_pixels, self._time)
            except VideoError:
                self._require_read()
                raise
            with container:
                self._require_read()
                yield container
                self._require_read()
        finally:
            if self._remote is not None:
                self._remote.close()

    def _require_read(self) -> None:
        """Raise an error of reading from S3, which FFmpeg takes for the end of the video."""
        if self._remote is not None and self._remote.error is not None:
            raise self._remote.error

    def video_stream(self, container: Any) -> Any:
        """The stream that `frames` decodes.

        Raises:
            VideoError: there is none: ``no_video_stream``, ``no_decoder``, ``invalid_data``.
        """
        stream = self._best_stream(container)
        if (stream is None or stream.codec_context is None) and self._of_file(is_cut):
            raise VideoError(self.path, "invalid_data", LOST_INDEX)
        if stream is None:
            kinds = {one.type.replace("video", "cover picture") for one in container.streams}
            found = ", ".join(sorted(kinds)) or "none"
            raise VideoError(self.path, "no_video_stream", f"streams in the file: {found}")
        if stream.codec_context is None:
            raise VideoError(self.path, "no_decoder", "FFmpeg has no decoder for its codec")
        # Threads do not speed up small frames; extraction runs one process per core instead.
        stream.codec_context.thread_count = 1
        self.container_s = _stated_duration_s(container, stream)
        return stream

    def _best_stream(self, container: Any) -> Any:
        """FFmpeg's choice, or the largest of the others if that is a cover picture."""
        best = container.streams.best("video")
        if best is None or not self._is_cover(container, best):
            return best
        others = [stream for stream in container.streams.video if stream.index != best.index]
        films = [stream for stream in others if not self._is_cover(container, stream)]
        return max(films, key=_pixels, default=None)

    def _is_cover(self, container: Any, stream: Any) -> bool:
        """Whether a stream is a cover picture: marked as one, or one still beside something longer.

        Some programs do not mark the covers that they put into Matroska.
        """
        context = stream.codec_context
        if is_cover(stream) or context is None or context.codec.canonical_name not in _STILLS:
            return is_cover(stream)
        # In another container: this one is read later, and its file stays where it is.
        reader = Decoder(self.path, self.limits)
        with reader.opened() as other:
            packets = reader.packets(other, other.streams[stream.index])
            pictures = list(islice((packet for packet in packets if packet.size), 2))
            if len(pictures) != 1 or reader._of_file(is_cut):
                return False
        if container.streams.audio:
            return True
        end_s = float(((pictures[0].pts or 0) + (pictures[0].duration or 0)) * stream.time_base)
        stated_s = float((container.duration or 0) / av.time_base)
        return stated_s > end_s + TRUNCATION_TOLERANCE_S

    def _check_header(self, stream: Any) -> None:
        raw = stream.start_time is None and stream.duration is None
        rate = stream.guessed_rate if raw else stream.average_rate
        self.frame_rate = float(rate or self.frame_rate)
        if self.container_s > self.limits.max_duration_s:
            # Without decoding this takes a second or so.
            self._check_duration(Decoder(self.path, self.limits).length_s())
        self._check_pixels(stream.codec_context.width, stream.codec_context.height)

    def _timeline(self, container: Any, stream: Any) -> Timeline:
        """The time line of all packets, or of those up to the longest allowed duration."""
        self._time.start()
        timeline = Timeline(container, stream, self.limits.max_gap_s)
        for _packet in timeline.packets(self.packets(container)):
            if timeline.length_s > self.limits.max_duration_s:
                break
        return timeline

    def _pictures(
        self, container: Any, stream: Any, skipping: Skipping, timeline: Timeline
    ) -> Iterator[tuple[int | None, int | None, Any]]:
        """Time stamp, duration and picture of each frame, including skipped ones."""
        context = stream.codec_context
        timed = timeline.packets(self.packets(container))
        for packet in chain(skipping.look_ahead(timed), [None]):
            skip = packet is not None and skipping.may_skip(packet)
            context.skip_frame = "NONREF" if skip else "DEFAULT"
            try:
                for picture in context.decode(packet):
                    self.flawed = self.flawed or picture.is_corrupt
                    if picture.interlaced_frame:
                        skipping.end()
                    for stamp, duration in skipping.before(picture.pts):
                        yield stamp, duration, None
                    by_decoding = timeline.by_decoding_time
                    stamp = picture.dts if by_decoding else picture.pts
                    yield stamp, picture.duration, picture
            except av.error.FFmpegError as error:
                self._require_memory(error)
                self.bad_packets += 1
                # So ends a picture beyond the limit, whose size the decoder forgets.
                refused = isinstance(error, av.error.ArgumentError) and not context.width
                self._too_large = self._too_large or refused
            else:
                if skip:
                    skipping.leave_out(packet)
        for stamp, duration in skipping.rest():
            yield stamp, duration, None

    def packets(self, container: Any, *streams: Any) -> Iterator[Any]:
        """The packets of these streams, by default of all."""
        packets = container.demux(*streams)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                self._require_memory(error)
                self.cut_off = True
                packet = None
            self._require_read()
            self._time.require()
            if packet is None:
                return
            yield packet

    def _require_memory(self, error: Exception) -> None:
        """Raise where memory was missing: that is no damage to the file, which other runs read."""
        if isinstance(error, MemoryError):
            rule = "reading it takes more memory than this process may have"
            raise VideoError(self.path, "unreadable", rule) from error

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


def _pixels(stream: Any) -> int:
    context = stream.codec_context
    return 0 if context is None else context.width * context.height


def _stated_duration_s(container: Any, stream: Any) -> float:
    track_s = _seconds(stream.duration, stream.time_base)
    if track_s is not None:
        return track_s
    if container.duration is None:
        return 0.0
    # Without a track length (Matroska) the header counts from zero, our times from the start.
    start_s = _seconds(stream.start_time, stream.time_base) or 0.0
    return max(0.0, float(container.duration / av.time_base) - max(0.0, start_s))


def late_start_s(container: Any, start_s: float | None) -> float:
    """`Decoder.late_s` of a file whose first picture has the time stamp `start_s`."""
    if start_s is None or container.start_time is None:
        return 0.0
    late_s = start_s - float(container.start_time / av.time_base)
    return late_s if late_s >= MIN_LATE_S else 0.0


def _time(scale: float, start_s: float, stamp: int) -> float:
    return stamp * scale - start_s


def _seconds(ticks: int | None, time_base: Any) -> float | None:
    return None if ticks is None or time_base is None else float(ticks * time_base)
