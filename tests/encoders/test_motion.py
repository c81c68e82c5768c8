"""Flow against known motion, and the row's numbers against what happens in the clip."""

import numpy as np
import pytest
from PIL import Image

from mrmodel.encoders.motion import MotionEncoder
from mrmodel.encoders.optical_flow import optical_flow

FRAMES, HEIGHT, WIDTH = 10, 48, 64
DIRECTION_NAMES = ["right", "down right", "down", "down left", "left", "up left", "up", "up right"]


def texture(height, width, seed):
    """Smooth random grey levels with detail at a few pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


SCENE = texture(120, 160, 0)
THING = texture(20, 20, 1)


def scene_at(shift_x=0, shift_y=0):
    return SCENE[30 + shift_y : 30 + shift_y + HEIGHT, 40 + shift_x : 40 + shift_x + WIDTH].copy()


def clip_of(pictures):
    return np.repeat(np.stack(pictures)[..., None], 3, axis=3)[None]


def moving_thing(position, size=lambda t: 20, angle=lambda t: 0, drift=lambda t: (0, 0)):
    """A textured disc before the scene; callables give its centre, size and angle at step t."""
    pictures = []
    for t in range(FRAMES):
        scene = Image.fromarray(scene_at(*drift(t)))
        side = size(t)
        thing = Image.fromarray(THING).resize((side, side), Image.Resampling.BILINEAR)
        thing = thing.rotate(angle(t), Image.Resampling.BILINEAR)
        y, x = np.mgrid[:side, :side] - (side - 1) / 2
        disc = Image.fromarray(((x**2 + y**2 <= (side / 2) ** 2) * 255).astype(np.uint8))
        left, top = (round(centre - side / 2) for centre in position(t))
        scene.paste(thing, (left, top), disc)
        pictures.append(np.asarray(scene))
    return clip_of(pictures)


def row_of(clip):
    return MotionEncoder().encode_clips(clip)[0]


def main_direction(row):
    return DIRECTION_NAMES[int((row[:8] ** 2 + row[8:16] ** 2).argmax())]


@pytest.mark.parametrize("motion", [(1, 0), (0, 1), (-2, 1), (3, -2), (5, 0), (0, -4)])
def test_flow_of_a_shifted_picture(motion):
    right, down = motion
    first, second = (
        pixels.astype(np.float32)[None] / 255 for pixels in (scene_at(), scene_at(-right, -down))
    )
    flow = np.median(optical_flow(first, second)[0], axis=(1, 2))
    np.testing.assert_allclose(flow, motion, atol=0.3)


def test_no_motion_no_flow():
    picture = scene_at().astype(np.float32)[None] / 255
    np.testing.assert_array_equal(optical_flow(picture, picture), 0)


def test_no_texture_no_flow():
    grey = np.full((1, 48, 64), 0.5, np.float32)
    np.testing.assert_array_equal(optical_flow(grey, grey + 0.1), 0)


@pytest.mark.parametrize(
    ("step", "name"), [((2, 0), "right"), ((-2, 0), "left"), ((0, -2), "up"), ((0, 2), "down")]
)
def test_directions(step, name):
    start = 32 - 4 * step[0], 24 - 4 * step[1]
    row = row_of(moving_thing(lambda t: (start[0] + step[0] * t, start[1] + step[1] * t)))
    assert main_direction(row) == name


def test_camera_motion_is_told_from_the_things_motion():
    row = row_of(moving_thing(lambda t: (32, 24), drift=lambda t: (t, 0)))
    camera_x, camera_y = row[16:18]
    assert camera_x < -0.2, "the picture goes left when the camera goes right"
    assert abs(camera_y) < 0.05
    # The thing stands still in the picture, so against the scene it goes right.
    assert main_direction(row) == "right"


def test_a_still_clip_has_only_its_constant():
    row = row_of(clip_of([scene_at()] * FRAMES))
    assert row[-1] == pytest.approx(0.25)
    np.testing.assert_allclose(row[:-1], 0, atol=1e-6)


def test_growing_and_shrinking():
    larger = row_of(moving_thing(lambda t: (32, 24), size=lambda t: 12 + 3 * t))
    smaller = row_of(moving_thing(lambda t: (32, 24), size=lambda t: 39 - 3 * t))
    growth = 20 + 2  # 16 directions, 4 of the camera, then velocity x, y, growth, turning
    assert larger[growth] > 0.1
    assert smaller[growth] < -0.1


def test_turning_has_a_sense():
    turning = 20 + 3
    one_way = row_of(moving_thing(lambda t: (32, 24), size=lambda t: 30, angle=lambda t: 8 * t))
    other = row_of(moving_thing(lambda t: (32, 24), size=lambda t: 30, angle=lambda t: -8 * t))
    assert one_way[turning] * other[turning] < 0
    assert abs(one_way[turning]) > 0.1


def test_shaking_alternates_and_moving_on_does_not():
    shaking = row_of(moving_thing(lambda t: (32 + 3 * (-1) ** t, 24)))
    going = row_of(moving_thing(lambda t: (16 + 3 * t, 24)))
    alternation = 20 + 12
    assert shaking[alternation] > 0.5
    assert going[alternation] < -0.5


def test_numbers_stay_within_one():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert np.abs(MotionEncoder().encode_clips(noise)).max() <= 1.0
