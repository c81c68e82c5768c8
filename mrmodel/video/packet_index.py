"""The frames of a video by its packets: their times, key frames and rate, without decoding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import VideoError
from mrmodel.video.decoder import Decoder, late_start_s
from mrmodel.video.timeline import Timeline

# Rates that cameras and editors have; those of NTSC are written as 23.976, 29.97 and 59.94.
STANDARD_RATES = (
    *(Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30)),
    *(Fraction(48), Fraction(50), Fraction(60000, 1001), Fraction(60)),
)
_TIMECODE = re.compile(r"\d\d:\d\d:\d\d[:;]\d\d")
# Larger denominators than those of NTSC are errors of rounding.
_DENOMINATOR = 1001


@dataclass(frozen=True, slots=True, eq=False)
class PacketIndex:
    """The packets of a video stream, in the order of storage; times are a player's seconds.

    Attributes:
        stamps: (n,) int64, display times as the file has them, in ticks of `time_base`.
        times_s: (n,) float64, display times.
        is_key: (n,) bool; decoding can start here.
        is_shown: (n,) bool; the others are cut off by the file's edit list.
        time_base: seconds of a tick.
        origin_s: the file's time stamp, in seconds, at which a player shows 0.
        end_s: end of the last frame.
        regular: each packet has a time stamp of its own, and the clock never breaks. In other files
            `stamps` are those that `Timeline` makes, or the frame rate.
        rate: frames per second: that of a file of constant rate, or the average.
        deviation_s: greatest difference between a frame's time and its time at `rate`.
        pixel_aspect: width of a pixel by its height.
        timecode: of the first frame, such as ``01:00:00:00``; empty if the file has none.
        video_codec, audio_codec: FFmpeg's decoders of the picture and the sound; empty without.
    """

    stamps: NDArray[np.int64]
    times_s: NDArray[np.float64]
    is_key: NDArray[np.bool_]
    is_shown: NDArray[np.bool_]
    time_base: Fraction
    origin_s: Fraction
    end_s: float
    regular: bool
    rate: Fraction
    deviation_s: float
    pixel_aspect: Fraction
    timecode: str
    video_codec: str
    audio_codec: str

    @property
    def constant(self) -> bool:
        """Whether the frame rate is constant: no frame is half a frame or more from its time."""
        return self.deviation_s < 0.5 / self.rate

    def frame_times_s(self) -> NDArray[np.float64]:
        """The times of the frames that are shown, each once, in order."""
        return np.unique(self.times_s[self.is_shown])


def index_packets(decoder: Decoder) -> PacketIndex:
    """Read all packets of a video.

    Raises:
        VideoError: the file cannot be read, or has no video stream or no frame.
    """
    with decoder.opened() as container:
        stream = decoder.video_stream(container)
        timeline = Timeline(container, stream, decoder.limits.max_gap_s)
        by_decoding = timeline.by_decoding_time
        found, keys, shown = [], [], []
        for packet in timeline.packets(decoder.packets(container)):
            found.append(packet.dts if by_decoding else packet.pts)
            keys.append(packet.is_keyframe)
            shown.append(not packet.is_discard)
        if not any(shown):
            raise VideoError(decoder.path, "no_frames", "the video stream has no frame to show")
        scale = stream.time_base
        timed = None not in found
        if timed:
            stamps = np.array(found, np.int64)
        else:
            start = 0 if stream.start_time is None else stream.start_time
            stamps = start + np.arange(len(found), dtype=np.int64) * timeline.period
        start = stream.start_time
        if start is None or by_decoding or not timed:
            start = int(stamps.min())
        late_s = late_start_s(container, float(start * scale))
        origin_s = start * scale - Fraction(late_s).limit_denominator(1_000_000)
        times_s = (stamps * float(scale) - float(origin_s)).astype(np.float64)
        times = np.unique(times_s[shown])
        sound = container.streams.best("audio")
        hints = (stream.average_rate, stream.guessed_rate)
        rate, deviation_s = _rate_of(times, [rate for rate in hints if rate])
        guessed = by_decoding or timeline.by_rate or timeline.unstamped
        regular = timed and not guessed and len(timeline.parts) == 1
        return PacketIndex(
            stamps=stamps,
            times_s=times_s,
            is_key=np.array(keys),
            is_shown=np.array(shown),
            time_base=scale,
            origin_s=origin_s,
            end_s=max(late_s + timeline.length_s, float(times[-1])),
            regular=bool(regular and len(np.unique(stamps)) == len(stamps)),
            rate=rate,
            deviation_s=deviation_s,
            pixel_aspect=stream.sample_aspect_ratio or Fraction(1),
            timecode=_timecode_of(container),
            video_codec=stream.codec_context.codec.name,
            audio_codec=_codec_of(sound),
        )


def _rate_of(times_s: NDArray[np.float64], hints: list[Fraction]) -> tuple[Fraction, float]:
    """Rate and greatest deviation: that of a constant rate, if one fits, or else the average."""
    if len(times_s) == 1:
        return (hints[0] if hints else Fraction(25)), 0.0
    measured = Fraction(len(times_s) - 1) / Fraction(float(times_s[-1] - times_s[0]))
    for rate in (*hints, *STANDARD_RATES, measured.limit_denominator(_DENOMINATOR)):
        deviation_s = _deviation_s(times_s, rate)
        if deviation_s < 0.5 / rate:
            return rate, deviation_s
    average = measured.limit_denominator(1_000_000)
    return average, _deviation_s(times_s, average)


def _deviation_s(times_s: NDArray[np.float64], rate: Fraction) -> float:
    at_rate = times_s[0] + np.arange(len(times_s)) / float(rate)
    return float(np.abs(times_s - at_rate).max())


def _timecode_of(container: Any) -> str:
    for owner in (*container.streams.video, *container.streams, container):
        found = owner.metadata.get("timecode", "")
        if _TIMECODE.fullmatch(found):
            return str(found)
    return ""


def _codec_of(stream: Any) -> str:
    if stream is None or stream.codec_context is None:
        return ""
    return str(stream.codec_context.codec.name)
