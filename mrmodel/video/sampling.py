"""Frame sampling rules: which frames represent a clip, and at what size."""

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

# HERO's extractor resamples every video to this rate, and its network spans 64 frames.
HERO_RATE = 30
HERO_SPAN = 64

# Time stamps closer than this are equal: file times are integer ticks, ours are floats.
TIME_TOLERANCE_S = 1e-6


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """The frames that an encoder needs of each clip.

    The clip is divided into `frames_per_clip` equal slots and one frame is taken per slot:

    * ``middle``: the last frame at or before the slot's middle;
    * ``ffmpeg_fps``: the last frame strictly before the slot's middle, which is what ffmpeg's
      filter ``fps=frames_per_clip/clip_len`` gives (it rounds times to the nearest slot).

    A third rule has no slots: ``hero`` gives the frames of the published SlowFast features
    (`hero_indices`), frames of a 30-fps stream that do not cover the clip evenly.

    Attributes:
        frames_per_clip: T, the frames of one clip.
        size: (width, height) in pixels; None keeps the image size.
        rule: see above.
        resize: the filter of the scaler; ``bicubic_no_antialias`` uses a 4 x 4 kernel at any scale,
            as PyTorch does without antialiasing.
        fit: ``squash`` the image to the size, or scale its short side to it and ``crop`` the
            centre, which needs a square size.
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
        """The target time in seconds of slot `slot` of clip `clip`.

        `frame_rate` is the file's, in frames per second; only the rule ``hero`` uses it.
        """
        if self.rule == "hero":
            frames = int(clip_len_s * HERO_RATE + 1e-6)
            index = hero_indices(frames, math.floor(frame_rate), self.frames_per_clip)[slot]
            return clip * clip_len_s + (index + 0.5) / HERO_RATE
        return clip_len_s * (clip + (slot + 0.5) / self.frames_per_clip)

    def has_target(
        self, start_s: float, end_s: float, clip_len_s: float, frame_rate: float = HERO_RATE
    ) -> bool:
        """Whether a slot may have its target in the interval (seconds); never a false negative."""
        offsets = _target_offsets(self, clip_len_s, math.floor(frame_rate))
        # A wider tolerance than in `is_past`: an extra frame costs little.
        low_s, high_s = start_s - 2 * TIME_TOLERANCE_S, end_s + 2 * TIME_TOLERANCE_S
        first, last = math.floor(low_s / clip_len_s), math.floor(high_s / clip_len_s)
        if last - first > 1:
            return True  # The interval spans a whole clip.
        clips = {first, last}
        return any(
            bisect_left(offsets, low_s - clip * clip_len_s)
            != bisect_right(offsets, high_s - clip * clip_len_s)
            for clip in clips
        )

    def is_past(self, time_s: float, target_s: float) -> bool:
        """Whether a frame at `time_s` is too late for the slot with that target."""
        if self.rule in ("ffmpeg_fps", "hero"):
            return time_s >= target_s - TIME_TOLERANCE_S
        return time_s > target_s + TIME_TOLERANCE_S

    def as_json(self) -> dict[str, object]:
        """JSON-able description, for fingerprints."""
        fields = asdict(self)
        if self.fit == "squash":
            del fields["fit"]  # keeps the fingerprints of features from before this option existed
        return fields | {"size": None if self.size is None else list(self.size)}


@lru_cache(maxsize=64)
def _target_offsets(
    sampling: FrameSampling, clip_len_s: float, frame_rate: float
) -> tuple[float, ...]:
    """Targets of a clip, in order, relative to its start."""
    slots = range(sampling.frames_per_clip)
    return tuple(sorted(sampling.target_s(0, slot, clip_len_s, frame_rate) for slot in slots))


@lru_cache(maxsize=64)
def hero_indices(clip_frames: int, frame_rate: int, count: int) -> tuple[int, ...]:
    """Indices at 30 fps of a clip's frames that HERO's SlowFast extractor uses.

    It intends to span 64 frames of the *file*, and so divides 64 * rate / 30 frames of the 30-fps
    stream into equal steps, regardless of the clip's end; indices beyond it give the last frame.
    With 2-s clips a file of 30 fps covers its clip, one of 24 fps gives its first 51 frames, and
    one of 60 fps repeats the last frame for half of them.

    Args:
        clip_frames: frames of the clip at 30 fps.
        frame_rate: of the file, rounded down.
        count: number of frames.
    """
    end = np.float32(HERO_SPAN * frame_rate / HERO_RATE - 1)
    # From both ends to the middle in float32, as in PyTorch's linspace, for identical rounding.
    step = end / np.float32(max(count - 1, 1))
    steps = np.arange(count, dtype=np.float32)
    places = np.where(steps < count / 2, step * steps, end - step * (count - 1 - steps))
    return tuple(int(place) for place in np.clip(places, 0, clip_frames - 1))


def whole_clips(duration_s: float, clip_len_s: float) -> int:
    """Number of clips in a duration; the last one may lack a thousandth of its length."""
    return int(duration_s / clip_len_s + 1e-3)


def count_clips(duration_s: float, clip_len_s: float) -> int:
    """Number of clips of a video: whole clips, at least one; a shorter tail is dropped."""
    return max(1, whole_clips(duration_s, clip_len_s))
