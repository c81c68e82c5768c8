"""Frames of a video file, clip by clip: sequential decoding that tolerates damaged files.

The decoder never seeks (with key frames seconds apart, seeking costs over ten times more) and holds
a few frames at a time, whatever the video's length. Times count from the first picture;
rotation stored in the file is applied; a damaged packet loses only its own frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from mrmodel.errors import VideoError
from mrmodel.video.decoder import Decoder, TimedFrame, VideoLimits
from mrmodel.video.sampling import FrameSampling, count_clips, whole_clips
from mrmodel.video.timeline import Part

MAX_INTERPOLATED_SHARE = 0.1


# Why a report is partial.
REASONS = {
    "missing_frames": "many clips have no picture of their own and repeat an earlier one",
    "joined": "the clock of the file breaks, as in joined files; its parts are laid end to end",
    "no_time_stamps": "frames have no usable time stamps; the frame rate gives their times",
    "bad_time_stamps": "frames with time stamps that go back are left out",
    "bad_packets": "the video was read only in part: packets are damaged",
    "truncated": "the video was read only in part: it ends early or cannot be read further",
}


@dataclass(frozen=True, slots=True)
class ClipFrames:
    """Frames of one clip.

    Attributes:
        index: clip number, from 0.
        start_s: its start in seconds.
        frames: (T, H, W, 3) uint8 RGB.
        interpolated: the file has no frame during this clip; an earlier one is repeated.
    """

    index: int
    start_s: float
    frames: NDArray[np.uint8]
    interpolated: bool


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """Result of decoding one video.

    Attributes:
        status: ``ok``; ``partial`` if frames are missing, or not where the file's time stamps say;
            ``failed`` if there is no clip.
        reason: for ``partial`` one of ``truncated``, ``bad_packets``, ``bad_time_stamps``,
            ``no_time_stamps``, ``joined``, ``missing_frames`` (`REASONS` says what they mean); for
            ``failed`` the code of the VideoError; empty for ``ok``.
        duration_s: end of the last frame (from the container if frames have no duration).
        decoded_s: seconds of it covered by decoded frames.
        bad_packets: number of packets that could not be decoded.
        n_clips, n_interpolated: number of clips, and of those that repeat an earlier frame.
        width, height: pixels of the upright image, before resizing.
        start_s: seconds from the start of the file, where a player's clock starts, to the first
            picture, from which all other times count.
        parts: stretches between breaks of the file's clock, laid end to end; empty without a break.
        n_untimed: frames without a usable time stamp, timed by the frame rate.
        n_unseen: frames left out because their time stamps go back.
    """

    status: Literal["ok", "partial", "failed"]
    reason: str
    duration_s: float
    decoded_s: float
    bad_packets: int
    n_clips: int
    n_interpolated: int
    width: int
    height: int
    start_s: float = 0.0
    parts: tuple[Part, ...] = ()
    n_untimed: int = 0
    n_unseen: int = 0

    def notes(self) -> list[str]:
        """What is wrong with a partly read video, as lines for people."""
        if self.status != "partial":
            return []
        lines = [f"{self.reason}: {REASONS[self.reason]}"]
        lines += [
            f"from {part.start_s:.1f} s on, times are those of the file {part.offset_s:+.1f} s"
            for part in self.parts[1:]
        ]
        return lines


class FrameSource:
    """A video file as a stream of clips.

    Args:
        path: the file, or a pointer to a video in S3 (see `remote`).
        limits: files beyond them are rejected.

    Attributes:
        is_flawed: a pass for other frames of the file may find other pictures (`Decoder.flawed`);
            of the last pass, once its clips are exhausted.
    """

    def __init__(self, path: Path | str, limits: VideoLimits | None = None) -> None:
        self.path = Path(path)
        self.limits = limits or VideoLimits()
        self._report: DecodeReport | None = None
        self.is_flawed = False

    @property
    def report(self) -> DecodeReport:
        """The report of the last pass; available once `clips` is exhausted or has raised."""
        if self._report is None:
            raise RuntimeError(f"{self.path}: no report before all clips are read")
        return self._report

    def clips(self, clip_len_s: float, sampling: FrameSampling) -> Iterator[ClipFrames]:
        """Decode the file once and yield its clips in order; a tail below one clip is dropped.

        Raises:
            VideoError: see `clips_for`.
        """
        for _, clip in self.clips_for(clip_len_s, [sampling]):
            yield clip

    def clips_for(
        self, clip_len_s: float, samplings: Sequence[FrameSampling]
    ) -> Iterator[tuple[int, ClipFrames]]:
        """Decode the file once for several samplings: (place of the sampling, its next clip).

        Each gets the clips, in order, that it would get alone, unless the file `is_flawed`.

        Raises:
            VideoError: nothing can be decoded, or the file is beyond a limit; `code` is one of
                ``not_found``, ``unreadable``, ``invalid_data``, ``unknown_container``,
                ``no_video_stream``, ``no_decoder``, ``no_frames``, ``too_long``,
                ``too_many_pixels``, ``timed_out``; for a video in S3 also ``invalid_pointer`` and
                ``changed`` (another version than the pointer's).
        """
        self._report = None
        decoder = Decoder(self.path, self.limits)
        cutters = [_ClipCutter(clip_len_s, sampling, decoder) for sampling in samplings]

        def wanted(start_s: float, end_s: float) -> bool:
            return any(cutter.wants(start_s, end_s) for cutter in cutters)

        cutter = cutters[0]
        try:
            for frame in decoder.frames(wanted):
                for place, one in enumerate(cutters):
                    for clip in one.add(frame):
                        yield place, clip
            for place, one in enumerate(cutters):
                for clip in one.finish(decoder.duration_s()):
                    yield place, clip
        except VideoError as error:
            self._report = _report(decoder, cutter, cutter.end_s, error.code, failed=True)
            raise
        self.is_flawed = decoder.flawed
        reason = _reason(decoder, cutter)
        self._report = _report(decoder, cutter, decoder.duration_s(), reason)


def _report(
    decoder: Decoder, cutter: _ClipCutter, duration_s: float, reason: str, *, failed: bool = False
) -> DecodeReport:
    status: Literal["ok", "partial", "failed"] = "partial" if reason else "ok"
    return DecodeReport(
        status="failed" if failed else status,
        reason=reason,
        duration_s=duration_s,
        decoded_s=cutter.covered_s,
        bad_packets=decoder.bad_packets,
        n_clips=cutter.n_clips,
        n_interpolated=cutter.n_interpolated,
        width=decoder.width,
        height=decoder.height,
        start_s=decoder.late_s,
        parts=decoder.parts if len(decoder.parts) > 1 else (),
        n_untimed=decoder.n_untimed,
        n_unseen=decoder.n_unseen,
    )


def _reason(decoder: Decoder, cutter: _ClipCutter) -> str:
    """The gravest fault; empty without one."""
    faults = {
        "truncated": decoder.cut_off,
        "bad_packets": decoder.bad_packets > 0,
        "bad_time_stamps": decoder.n_unseen > 0,
        "no_time_stamps": decoder.untimed,
        "joined": len(decoder.parts) > 1,
        "missing_frames": cutter.n_interpolated > MAX_INTERPOLATED_SHARE * cutter.n_clips,
    }
    return next((name for name, found in faults.items() if found), "")


class _ClipCutter:
    """Assembles frames in time order into clips; holds one frame and the incomplete clips."""

    def __init__(self, clip_len_s: float, sampling: FrameSampling, decoder: Decoder) -> None:
        if clip_len_s <= 0:
            raise ValueError(f"clip_len_s = {clip_len_s}: must be positive")
        self._clip_len_s, self._sampling, self._decoder = clip_len_s, sampling, decoder
        self._size, self._scaler = sampling.size, VideoReformatter()
        self._current: TimedFrame | None = None
        self._pixels: NDArray[np.uint8] | None = None  # of the current frame, computed lazily
        self._picked: list[NDArray[np.uint8]] = []  # for the current clip
        self._filled: deque[list[NDArray[np.uint8]]] = deque()
        self._shown: list[tuple[float, float]] = []  # (start, end) of frames within the next clips
        self.end_s = self.covered_s = 0.0
        self.n_clips = self.n_interpolated = 0

    def add(self, frame: TimedFrame) -> Iterator[ClipFrames]:
        """Add the next frame; yield the clips that are now complete."""
        if self._current is None:
            self._become(frame)  # the first frame also stands for the time before it
        while self._sampling.is_past(frame.time_s, self._next_target_s()):
            self._pick()
            # One frame may fill many clips of a long gap: yield them now to bound memory.
            yield from self._whole_clips(frame.time_s)
        self._become(frame)
        end_s = frame.time_s + frame.duration_s
        self._shown.append((frame.time_s, end_s))
        self.covered_s += max(0.0, end_s - max(frame.time_s, self.end_s))
        self.end_s = max(self.end_s, end_s)
        yield from self._whole_clips(self.end_s)

    def finish(self, duration_s: float) -> Iterator[ClipFrames]:
        """Yield the remaining clips of a video of that length, filled with the last frame."""
        n_clips = count_clips(duration_s, self._clip_len_s)
        while self.n_clips < n_clips:
            while not self._filled:
                self._pick()
            yield self._give()

    def wants(self, start_s: float, end_s: float) -> bool:
        """Whether a frame displayed from `start_s` to `end_s` is picked for a clip."""
        rate = self._decoder.frame_rate
        return self._sampling.has_target(start_s, end_s, self._clip_len_s, rate)

    def _become(self, frame: TimedFrame) -> None:
        if frame.picture is None:
            return  # If the needed frame is damaged, an earlier one replaces it.
        self._size = self._size or frame.upright_size
        self._current, self._pixels = frame, None

    def _next_target_s(self) -> float:
        clip = self.n_clips + len(self._filled)
        rate = self._decoder.frame_rate
        return self._sampling.target_s(clip, len(self._picked), self._clip_len_s, rate)

    def _pick(self) -> None:
        if self._current is None or self._size is None:
            raise RuntimeError("no frame was added")
        if self._pixels is None:
            self._pixels = self._current.to_rgb(self._size, self._sampling, self._scaler)
        self._picked.append(self._pixels)
        if len(self._picked) == self._sampling.frames_per_clip:
            self._filled.append(self._picked)
            self._picked = []

    def _whole_clips(self, known_s: float) -> Iterator[ClipFrames]:
        """Filled clips that end within the first `known_s` seconds of the video."""
        n_clips = whole_clips(known_s, self._clip_len_s)
        while self._filled and self.n_clips < n_clips:
            yield self._give()

    def _give(self) -> ClipFrames:
        start_s = self.n_clips * self._clip_len_s
        end_s = start_s + self._clip_len_s
        # By display time, not by time stamp: a slide show with a frame every 10 s is complete.
        seen = any(first < end_s and max(first, last) > start_s for first, last in self._shown)
        clip = ClipFrames(self.n_clips, start_s, np.stack(self._filled.popleft()), not seen)
        self._shown = [shown for shown in self._shown if shown[1] > end_s]
        self.n_clips += 1
        self.n_interpolated += clip.interpolated
        return clip
