"""Renders the script of a video to an H.264 file.

Whole pixels and a single thread make the bytes reproducible (for one machine type and one set of
library versions).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from mrmodel.files import atomic_path, derive_seed
from mrmodel.synthetic.motion import Pose, camera_at, pose_at
from mrmodel.synthetic.scenes import paint_scene
from mrmodel.synthetic.script import MAX_DRIFT, Shot, VideoPlan
from mrmodel.synthetic.sprites import sprite

# Measured at 256x192: half the encoding time of `veryfast` for twice its bytes; without
# `fastdecode` decoding takes twice as long, and every stream decodes the video again.
ENCODER_PRESET, ENCODER_TUNE = "superfast", "fastdecode"
KEYFRAME_EVERY_S = 10
EXACT = Interpolation.BILINEAR | Interpolation.BITEXACT | Interpolation.ACCURATE_RND


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """Size in pixels, frames per second, and H.264 quality of a video file."""

    width: int
    height: int
    fps: int
    crf: int


class SceneRenderer:
    """Draws the frames of one video; backgrounds and sprites are prepared once."""

    def __init__(self, plan: VideoPlan, size: tuple[int, int]) -> None:
        self._plan, self._size = plan, size
        self._margin = round(MAX_DRIFT * size[0]) + 1, round(MAX_DRIFT * size[1]) + 1
        self._scenes: dict[str, Image.Image] = {}
        self._sprites: dict[tuple[str, int], Image.Image] = {}

    def frame(self, time_s: float) -> Image.Image:
        """The RGB image at `time_s`."""
        index = self._shot_at(time_s)
        picture = self._draw_shot(self._plan.shots[index], time_s)
        for begin, end, share in self._fades(index, time_s):
            first = picture if begin == index else self._draw_shot(self._plan.shots[begin], time_s)
            last = picture if end == index else self._draw_shot(self._plan.shots[end], time_s)
            picture = Image.blend(first, last, share)
        return picture

    def _shot_at(self, time_s: float) -> int:
        starts = [shot.start_s for shot in self._plan.shots]
        return max(index for index, start in enumerate(starts) if start <= time_s)

    def _fades(self, index: int, time_s: float) -> Iterator[tuple[int, int, float]]:
        """The cross-fade at `time_s`, if any: (shot before, shot after, weight of the latter)."""
        shots = self._plan.shots
        for end in (index, index + 1):
            if end == 0 or end == len(shots) or shots[end].crossfade_s == 0:
                continue
            share = 0.5 + (time_s - shots[end].start_s) / shots[end].crossfade_s
            if 0 < share < 1:
                yield end - 1, end, share

    def _draw_shot(self, shot: Shot, time_s: float) -> Image.Image:
        width, height = self._size
        shift_x, shift_y = camera_at(shot, time_s)
        left = self._margin[0] + round(shift_x * width)
        top = self._margin[1] + round(shift_y * height)
        picture = self._scene(shot.place).crop((left, top, left + width, top + height))
        pose = pose_at(shot, time_s)
        if pose is not None and shot.topic is not None:
            figure = self._figure(shot.topic.subject, pose)
            # Subjects are in world coordinates, so camera motion shifts them the other way.
            x = round((pose.x - shift_x) * width - figure.width / 2)
            y = round((pose.y - shift_y) * height - figure.height / 2)
            picture.paste(figure, (x, y), figure)
        return picture

    def _scene(self, place: str) -> Image.Image:
        if place not in self._scenes:
            size = (self._size[0] + 2 * self._margin[0], self._size[1] + 2 * self._margin[1])
            rng = Random(derive_seed(self._plan.seed, "scene", place))
            self._scenes[place] = paint_scene(place, size, rng)
        return self._scenes[place]

    def _figure(self, subject: str, pose: Pose) -> Image.Image:
        figure = self._resized(subject, max(round(pose.size * self._size[1]), 2))
        if pose.angle:
            figure = figure.rotate(pose.angle, Image.Resampling.BILINEAR, expand=True)
        if pose.opacity < 1:
            faded = figure.getchannel("A").point(lambda alpha: round(alpha * pose.opacity))
            figure = figure.copy()
            figure.putalpha(faded)
        return figure

    def _resized(self, subject: str, longer_side: int) -> Image.Image:
        key = subject, longer_side
        if key not in self._sprites:
            source = sprite(subject)
            scale = longer_side / max(source.size)
            size = max(round(source.width * scale), 1), max(round(source.height * scale), 1)
            self._sprites[key] = source.resize(size, Image.Resampling.BILINEAR)
        return self._sprites[key]


def draw_frames(plan: VideoPlan, picture: PictureFormat) -> Iterator[Image.Image]:
    """The duration x fps RGB frames of a video, in order."""
    stage = SceneRenderer(plan, (picture.width, picture.height))
    for index in range(round(plan.duration_s * picture.fps)):
        yield stage.frame(index / picture.fps)


def render_video(plan: VideoPlan, picture: PictureFormat, target: Path) -> int:
    """Write the video of `plan` to `target` (mp4, H.264, yuv420p); returns its size in bytes."""
    with atomic_path(target) as temporary:
        container = av.open(
            str(temporary), "w", format="mp4", container_options={"movflags": "+faststart"}
        )
        with container:
            stream = container.add_stream("libx264", rate=picture.fps)
            stream.width, stream.height = picture.width, picture.height
            stream.pix_fmt = "yuv420p"
            # With more threads the bytes would depend on timing.
            stream.codec_context.thread_count = 1
            stream.options = {
                "preset": ENCODER_PRESET,
                "tune": ENCODER_TUNE,
                "crf": str(picture.crf),
                "g": str(KEYFRAME_EVERY_S * picture.fps),
            }
            converter = VideoReformatter()
            for image in draw_frames(plan, picture):
                frame = av.VideoFrame.from_ndarray(np.asarray(image), "rgb24")
                frame = converter.reformat(frame, format="yuv420p", interpolation=EXACT, threads=1)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return target.stat().st_size
