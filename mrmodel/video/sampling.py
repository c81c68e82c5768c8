"""Which frames stand for a clip, and at what size: the rules of features.md section 4, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

SamplingRule = Literal["middle", "ffmpeg_fps"]
ResizeFilter = Literal["bicubic", "bilinear", "area"]

# Two time stamps closer than this are the same moment: file times are whole ticks, ours are floats.
TIME_TOLERANCE_S = 1e-6


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """What an encoder wants to see of each clip.

    The clip is cut into `frames_per_clip` equal slots and one frame is taken a slot:

    * ``middle``: the last frame at or before the slot's middle;
    * ``ffmpeg_fps``: the last frame strictly before the slot's middle, which is what ffmpeg's
      filter ``fps=frames_per_clip/clip_len`` gives (it rounds times to the nearest slot).

    Attributes:
        frames_per_clip: T, the frames of one clip.
        size: (width, height) in pixels, the picture is squashed to it; None keeps its size.
        rule: see above.
        resize: the filter of the scaler.
    """

    frames_per_clip: int
    size: tuple[int, int] | None
    rule: SamplingRule = "middle"
    resize: ResizeFilter = "bicubic"

    def __post_init__(self) -> None:
        if self.frames_per_clip < 1:
            raise ValueError(f"frames_per_clip = {self.frames_per_clip}: must be 1 or more")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size = {self.size}: width and height must be 1 or more")

    def target_s(self, clip: int, slot: int, clip_len_s: float) -> float:
        """The moment, in seconds, whose frame slot number `slot` of clip number `clip` shows."""
        return clip_len_s * (clip + (slot + 0.5) / self.frames_per_clip)

    def is_past(self, time_s: float, target_s: float) -> bool:
        """True when a frame at `time_s` comes too late for the slot with that target."""
        if self.rule == "ffmpeg_fps":
            return time_s >= target_s - TIME_TOLERANCE_S
        return time_s > target_s + TIME_TOLERANCE_S

    def as_json(self) -> dict[str, object]:
        """JSON-able description, for fingerprints."""
        fields = asdict(self)
        return fields | {"size": None if self.size is None else list(self.size)}


def whole_clips(duration_s: float, clip_len_s: float) -> int:
    """Clips that fit into a duration; the last one may lack a thousandth of its length."""
    return int(duration_s / clip_len_s + 1e-3)


def count_clips(duration_s: float, clip_len_s: float) -> int:
    """Clips of a video: the whole ones, but at least one. A tail below one clip is dropped."""
    return max(1, whole_clips(duration_s, clip_len_s))
