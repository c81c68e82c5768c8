"""Which frames stand for a clip, and at what size: the rules of features.md section 4, as data."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

SamplingRule = Literal["middle", "ffmpeg_fps", "hero"]
ResizeFilter = Literal["bicubic", "bilinear", "area", "bicubic_no_antialias"]
Fit = Literal["squash", "crop"]

# HERO's extractor brings every video to this rate, and its network looks 64 frames far.
HERO_RATE = 30
HERO_SPAN = 64

# Two time stamps closer than this are the same moment: file times are whole ticks, ours are floats.
TIME_TOLERANCE_S = 1e-6


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """What an encoder wants to see of each clip.

    The clip is cut into `frames_per_clip` equal slots and one frame is taken a slot:

    * ``middle``: the last frame at or before the slot's middle;
    * ``ffmpeg_fps``: the last frame strictly before the slot's middle, which is what ffmpeg's
      filter ``fps=frames_per_clip/clip_len`` gives (it rounds times to the nearest slot).

    A third rule has no slots: ``hero`` is what the SlowFast features of the community saw
    (`hero_indices`), frames of a 30-fps stream that do not spread over the clip evenly.

    Attributes:
        frames_per_clip: T, the frames of one clip.
        size: (width, height) in pixels; None keeps the picture's size.
        rule: see above.
        resize: the filter of the scaler; ``bicubic_no_antialias`` looks at 4 x 4 pixels however
            much the picture shrinks, as PyTorch does where antialiasing is off.
        fit: ``squash`` the picture to the size, or scale its short side to it and ``crop`` the
            middle, which needs a square size.
    """

    frames_per_clip: int
    size: tuple[int, int] | None
    rule: SamplingRule = "middle"
    resize: ResizeFilter = "bicubic"
    fit: Fit = "squash"

    def __post_init__(self) -> None:
        if self.frames_per_clip < 1:
            raise ValueError(f"frames_per_clip = {self.frames_per_clip}: must be 1 or more")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size = {self.size}: width and height must be 1 or more")
        if self.fit == "crop" and (self.size is None or self.size[0] != self.size[1]):
            raise ValueError(f"size = {self.size}: a crop needs a square size")

    def target_s(
        self, clip: int, slot: int, clip_len_s: float, frame_rate: float = HERO_RATE
    ) -> float:
        """The moment, in seconds, whose frame slot number `slot` of clip number `clip` shows.

        `frame_rate` is the file's, in frames a second; only the rule ``hero`` looks at it.
        """
        if self.rule == "hero":
            frames = int(clip_len_s * HERO_RATE + 1e-6)
            index = hero_indices(frames, math.floor(frame_rate), self.frames_per_clip)[slot]
            return clip * clip_len_s + (index + 0.5) / HERO_RATE
        return clip_len_s * (clip + (slot + 0.5) / self.frames_per_clip)

    def has_target(
        self, start_s: float, end_s: float, clip_len_s: float, frame_rate: float = HERO_RATE
    ) -> bool:
        """False only where no slot has its target between the two moments (seconds)."""
        offsets = _target_offsets(self, clip_len_s, math.floor(frame_rate))
        # Wider than `is_past` looks: a frame too many costs little.
        low_s, high_s = start_s - 2 * TIME_TOLERANCE_S, end_s + 2 * TIME_TOLERANCE_S
        first, last = math.floor(low_s / clip_len_s), math.floor(high_s / clip_len_s)
        if last - first > 1:
            return True  # It spans a whole clip.
        clips = {first, last}
        return any(
            bisect_left(offsets, low_s - clip * clip_len_s)
            != bisect_right(offsets, high_s - clip * clip_len_s)
            for clip in clips
        )

    def is_past(self, time_s: float, target_s: float) -> bool:
        """True when a frame at `time_s` comes too late for the slot with that target."""
        if self.rule in ("ffmpeg_fps", "hero"):
            return time_s >= target_s - TIME_TOLERANCE_S
        return time_s > target_s + TIME_TOLERANCE_S

    def as_json(self) -> dict[str, object]:
        """JSON-able description, for fingerprints."""
        fields = asdict(self)
        if self.fit == "squash":
            del fields["fit"]  # so that features from before there was a choice keep their print
        return fields | {"size": None if self.size is None else list(self.size)}


@lru_cache(maxsize=64)
def _target_offsets(
    sampling: FrameSampling, clip_len_s: float, frame_rate: float
) -> tuple[float, ...]:
    """Targets of the first clip, in order; those of the others are as far from their starts."""
    slots = range(sampling.frames_per_clip)
    return tuple(sorted(sampling.target_s(0, slot, clip_len_s, frame_rate) for slot in slots))


@lru_cache(maxsize=64)
def hero_indices(clip_frames: int, frame_rate: int, count: int) -> tuple[int, ...]:
    """Frames of a clip, counted at 30 a second, that HERO's SlowFast extractor looks at.

    It means to span 64 frames of the *file*, and so cuts 64 * rate / 30 frames of the 30-fps stream
    into equal steps, wherever the clip ends; what lies beyond is the clip's last frame
    (features.md, section 2.1). With 2-s clips a file of 30 fps covers its clip, one of 24 fps gives
    its first 51 frames, and one of 60 fps repeats the last frame for half of them.

    Args:
        clip_frames: frames of the clip at 30 a second.
        frame_rate: of the file, rounded down.
        count: frames wanted.
    """
    end = np.float32(HERO_SPAN * frame_rate / HERO_RATE - 1)
    # From both ends to the middle in float32, as PyTorch's linspace does: it decides roundings.
    step = end / np.float32(max(count - 1, 1))
    steps = np.arange(count, dtype=np.float32)
    places = np.where(steps < count / 2, step * steps, end - step * (count - 1 - steps))
    return tuple(int(place) for place in np.clip(places, 0, clip_frames - 1))


def whole_clips(duration_s: float, clip_len_s: float) -> int:
    """Clips that fit into a duration; the last one may lack a thousandth of its length."""
    return int(duration_s / clip_len_s + 1e-3)


def count_clips(duration_s: float, clip_len_s: float) -> int:
    """Clips of a video: the whole ones, but at least one. A tail below one clip is dropped."""
    return max(1, whole_clips(duration_s, clip_len_s))
