"""Videos with numbered frames, B-frames and a sound whose pitch tells the second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.video.fixtures import BITS, BLOCK, read_number

SIZE = (160, 96)
_RATE, _CHUNK = 48_000, 1024
FAST = {"preset": "veryfast", "crf": "20", "x264-params": "keyint=25:min-keyint=25:scenecut=0"}
VPX = {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "1M", "g": "25"}


def pitch_of(second: int) -> float:
    """Hertz of the sound of a second of the file."""
    return 300.0 + 100.0 * (second % 8)


def make_video(
    path: Path,
    times_s: Sequence[Fraction],
    time_base: Fraction,
    *,
    rate: Fraction = Fraction(25),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    sound: str | None = "aac",
    sound_s: float | None = None,
    size: tuple[int, int] = SIZE,
    pix_fmt: str = "yuv420p",
    turned: int = 0,
) -> Path:
    """Frame `i` is shown at `times_s[i]`; `turned` clockwise quarter turns are in the header.

    The sound lasts from 0 to `sound_s`, or as long as the pictures.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate)
        video.width, video.height = size if turned % 2 == 0 else size[::-1]
        video.pix_fmt = pix_fmt
        video.codec_context.time_base = time_base
        video.options = FAST if options is None else options
        if turned:
            video.set_display_rotation(-90 * turned)
        audio = None if sound is None else container.add_stream(sound, rate=_RATE)
        end_s = float(times_s[-1]) if sound_s is None else sound_s
        chunks = range(int(end_s * _RATE / _CHUNK)) if audio else range(0)
        events = [(float(time), 0, n) for n, time in enumerate(times_s)]
        events += [(n * _CHUNK / _RATE, 1, n) for n in chunks]
        for _, is_sound, number in sorted(events):
            if is_sound:
                frame = _tone(number)
                container.mux(audio.encode(frame))
                continue
            picture = np.ascontiguousarray(np.rot90(_picture(number, size), turned))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = round(times_s[number] / time_base), time_base
            container.mux(video.encode(frame))
        for stream in filter(None, (video, audio)):
            container.mux(stream.encode(None))
    return path


def constant(n_frames: int, rate: Fraction) -> list[Fraction]:
    """Times of frames at a constant rate."""
    return [number / rate for number in range(n_frames)]


def _picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """A grey picture for `read_number`; without the noise of other tests, which encodes slowly."""
    picture = np.full((size[1], size[0], 3), 128, np.uint8)
    for bit in range(BITS):
        picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    return picture


def _tone(number: int) -> av.AudioFrame:
    times = (np.arange(_CHUNK) + number * _CHUNK) / _RATE
    pitch = pitch_of(int(times[0]))
    samples = 0.5 * np.sin(2 * np.pi * pitch * times).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(np.stack([samples, samples]), "fltp", "stereo")
    frame.sample_rate, frame.time_base = _RATE, Fraction(1, _RATE)
    frame.pts = number * _CHUNK
    return frame


@dataclass(frozen=True)
class Content:
    """What a file shows: number and time of each frame, and the samples of its sound (mono)."""

    numbers: list[int]
    times_s: list[float]
    sound: np.ndarray
    duration_s: float
    size: tuple[int, int]

    def pitch_at(self, second: float) -> float:
        """Hertz of the sound around a time."""
        first = round((second - 0.1) * _RATE)
        part = self.sound[max(first, 0) : first + round(0.2 * _RATE)]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 16))
        return float(spectrum.argmax() * _RATE / (1 << 16))


def content_of(path: Path) -> Content:
    """Decode a file as a player does: upright, from its time 0.

    That is the first picture, unless it is more than 0.1 s late.
    """
    numbers, times, samples = [], [], []
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        origin = (container.start_time or 0) / av.time_base
        first = float((video.start_time or 0) * video.time_base)
        origin = first if first - origin < 0.1 else origin
        for frame in container.decode(video):
            picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            numbers.append(read_number(picture))
            times.append(float(frame.pts * video.time_base) - origin)
        size = picture.shape[1], picture.shape[0]
        duration_s = container.duration / av.time_base
    with av.open(str(path)) as container:
        if container.streams.audio:
            resampler = av.AudioResampler("fltp", "mono", _RATE)
            for frame in container.decode(audio=0):
                samples += [one.to_ndarray()[0] for one in resampler.resample(frame)]
    sound = np.concatenate(samples) if samples else np.zeros(0, np.float32)
    return Content(numbers, times, sound, duration_s, size)
