"""How a picture comes to the size that a network wants; and HERO's frames out of a file."""

import numpy as np
import pytest
import torch

from mrmodel.video.bicubic import resize_bicubic
from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling, hero_indices

from .fixtures import read_number, rotate, write_video
from .test_frames import ffmpeg_fps_numbers, numbers


@pytest.mark.parametrize("size", [(28, 28), (50, 20), (160, 120), (3, 2), (64, 48)])
def test_bicubic_equals_pytorchs(size):
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    planes = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(
        planes, size=size[::-1], mode="bicubic", align_corners=False, antialias=False
    )
    expected = scaled.round().clamp(0, 255)[0].permute(1, 2, 0).to(torch.uint8).numpy()
    ours = resize_bicubic(picture, size)
    assert ours.shape == expected.shape
    # A sum on the edge between two values may round either way.
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert (ours != expected).mean() < 2e-3


def first_frame(path, sampling):
    return next(iter(FrameSource(path).clips(1.0, sampling))).frames[0].astype(int)


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("resize", ["bicubic", "bicubic_no_antialias"])
def test_a_crop_is_the_middle_of_the_scaled_picture(tmp_path, turns, resize):
    """160 x 96 scaled to 53 x 32: ten columns go on the left, eleven on the right."""
    path = rotate(write_video(tmp_path / "a.mp4", 10, turned=turns), turns)
    whole = first_frame(path, FrameSampling(1, (53, 32), "middle", resize))
    crop = first_frame(path, FrameSampling(1, (32, 32), "middle", resize, "crop"))
    assert crop.shape == (32, 32, 3)
    np.testing.assert_array_equal(crop, whole[:, 10:42])


def test_a_crop_of_a_tall_picture(tmp_path):
    path = write_video(tmp_path / "a.mp4", 10, size=(96, 160))
    whole = first_frame(path, FrameSampling(1, (48, 80)))
    crop = first_frame(path, FrameSampling(1, (48, 48), fit="crop"))
    np.testing.assert_array_equal(crop, whole[16:64])


def test_scaling_without_antialiasing_keeps_the_native_pixels(tmp_path):
    path = write_video(tmp_path / "a.mp4", 10)
    native = first_frame(path, FrameSampling(1, None)).astype(np.uint8)
    scaled = first_frame(path, FrameSampling(1, (40, 24), "middle", "bicubic_no_antialias"))
    np.testing.assert_array_equal(scaled, resize_bicubic(native, (40, 24)))
    smooth = first_frame(path, FrameSampling(1, (40, 24)))
    assert scaled.std() > smooth.std()


@pytest.mark.parametrize("fps", [24, 30, 60])
def test_hero_frames_are_those_of_the_30_fps_stream(tmp_path, fps):
    path = write_video(tmp_path / "a.mp4", 4 * fps, fps=fps, size=(160, 32))
    stream = ffmpeg_fps_numbers(path, 1 / 30, 120)
    indices = hero_indices(60, fps, 32)
    expected = [[stream[first + index] for index in indices] for first in (0, 60)]
    assert numbers(FrameSource(path), 2.0, FrameSampling(32, None, "hero")) == expected
    assert read_number(first_frame(path, FrameSampling(32, None, "hero"))) == 0
