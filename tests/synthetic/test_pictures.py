"""Sprites, scenes, poses and single frames."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from mrmodel.errors import DataError
from mrmodel.synthetic.make_sprites import write_sprites
from mrmodel.synthetic.motion import camera_at, pose_at
from mrmodel.synthetic.scenes import paint_scene
from mrmodel.synthetic.script import SHOT_S, Shot, VideoPlan, plan_video
from mrmodel.synthetic.sprites import FOLDER, sprite, sprite_path, subjects
from mrmodel.synthetic.video_writer import PictureFormat, SceneRenderer, draw_frames
from mrmodel.synthetic.vocabulary import ACTIONS, PLACES, Topic
from tests.synthetic.test_annotations import plan_of, shot

SIZE = (256, 192)


def action_shot(action: str) -> Shot:
    return shot(0, 8, Topic("pig", action, "snow"))


def test_every_subject_has_its_cropped_sprite_and_no_other_file_is_there() -> None:
    names = {sprite_path(subject.name).name for subject in subjects()}
    assert names == {path.name for path in (FOLDER / "sprites").iterdir()}
    assert len(names) == len(subjects()) == len({subject.phrase for subject in subjects()}) == 150
    for subject in subjects():
        image = sprite(subject.name)
        assert image.mode == "RGBA"
        assert 100 <= max(image.size) <= 136
        assert image.getchannel("A").getbbox() == (0, 0, *image.size)
        assert subject.phrase.split()[0] in ("a", "an")


def test_the_sprite_script_refuses_what_is_no_colour_font(tmp_path: Path) -> None:
    (tmp_path / "font.ttf").write_bytes(b"not a font")
    with pytest.raises(DataError, match="not a readable colour font of bitmap size 109"):
        write_sprites(tmp_path / "font.ttf")


@pytest.mark.parametrize("place", sorted(PLACES))
def test_scenes_fill_the_picture_and_differ_between_videos(place: str) -> None:
    first, again, other = (paint_scene(place, SIZE, Random(seed)) for seed in (1, 1, 2))
    assert first.size == SIZE
    assert first.tobytes() == again.tobytes() != other.tobytes()
    grey = np.asarray(first.convert("L"), dtype=float)
    # Enough structure that a camera movement can be seen in most parts.
    blocks = grey.reshape(12, 16, 16, 16).std(axis=(1, 3))
    assert (blocks > 1).mean() > 0.95


def test_actions_move_as_they_are_called() -> None:
    def poses(action: str) -> list[tuple[float, float, float, float]]:
        found = [pose_at(action_shot(action), step / 5) for step in range(40)]
        return [(pose.x, pose.y, pose.size, pose.angle) for pose in found if pose is not None]

    x, y, size, angle = range(4)
    table = {action: np.array(poses(action)) for action in ACTIONS}
    assert all(len(rows) == 40 for rows in table.values())
    assert (np.diff(table["left"][:, x]) < 0).all()
    assert (np.diff(table["right"][:, x]) > 0).all()
    assert (np.diff(table["near"][:, size]) > 0).all()
    assert (np.diff(table["far"][:, size]) < 0).all()
    assert np.ptp(table["bounce"][:, y]) > 0.3
    assert np.ptp(table["spin"][:, angle]) > 360
    assert 0.05 < np.ptp(table["shake"][:, x]) < 0.1
    assert np.ptp(table["still"], axis=0).max() == 0


@pytest.mark.parametrize("entrance", ["fade", "rise"])
def test_a_late_subject_comes_and_an_early_one_goes(entrance: str) -> None:
    late = shot(
        0, 10, Topic("pig", "still", "snow"), shown_s=(4, 7), entrance=entrance, exit=entrance
    )
    assert pose_at(late, 3.9) is pose_at(late, 7.1) is None
    begin, middle, end = (pose_at(late, time_s) for time_s in (4.1, 5.5, 6.9))
    assert begin is not None
    assert middle is not None
    assert end is not None
    if entrance == "fade":
        assert begin.opacity < 0.2 < 1 == middle.opacity
        assert end.opacity < 0.2
    else:
        assert begin.y - begin.size / 2 > 0.85 > middle.y
        assert end.y - end.size / 2 > 0.85
    assert late.visible_s == pytest.approx((4.4, 6.6))


def test_crossfades_mix_both_shots() -> None:
    plan = VideoPlan(
        "v",
        "train",
        3,
        20,
        (
            shot(0, 10, None, place="snow"),
            shot(10, 20, None, place="space", crossfade_s=2.0),
        ),
    )
    stage = SceneRenderer(plan, SIZE)
    means = [np.asarray(stage.frame(time_s)).mean() for time_s in (8.9, 9.5, 10.0, 10.5, 11.1)]
    assert means == sorted(means, reverse=True)
    assert means[2] == pytest.approx((means[0] + means[-1]) / 2, abs=3)


def test_the_camera_moves_the_world_and_the_subject_alike() -> None:
    drifting = shot(0, 10, Topic("pig", "still", "snow"), drift=(0.08, 0.04))
    first, last = camera_at(drifting, 0), camera_at(drifting, 10)
    assert (last[0] - first[0], last[1] - first[1]) == pytest.approx((0.08, 0.04))
    begin, end = (np.asarray(SceneRenderer(plan_of(drifting), SIZE).frame(t)) for t in (0, 10))
    assert (begin[4:, 20:] == end[:-4, :-20]).all(axis=2).mean() < 0.5
    shift_x, shift_y = round(0.04 * 256) * 2, round(0.02 * 192) * 2
    assert (begin[shift_y:, shift_x:] == end[:-shift_y, :-shift_x]).mean() > 0.95


def test_plans_hold_what_they_promise() -> None:
    for index in range(60):
        plan = plan_video(f"v{index}", "train", 1, 60)
        assert plan.shots[0].start_s == 0
        assert plan.shots[-1].end_s == 60
        assert plan.shots[0].topic is not None
        topics = [each.topic for each in plan.shots if each.topic]
        assert len({topic.subject for topic in topics}) <= 3
        assert len({topic.action for topic in topics}) <= 3
        assert len({each.place for each in plan.shots}) <= 2
        for before, after in zip(plan.shots, plan.shots[1:], strict=False):
            assert before.end_s == after.start_s
            assert before.topic != after.topic or before.topic is None
        for each in plan.shots:
            assert SHOT_S[0] - 0.1 <= each.end_s - each.start_s <= SHOT_S[1] + 0.1
            start, end = each.visible_s
            assert each.start_s <= start < end <= each.end_s
            assert end - start >= 2.9
            assert (each.place == each.topic.place) if each.topic else True


@pytest.mark.parametrize("duration_s", [10, 11, 13, 20, 25])
def test_short_videos_are_planned_too(duration_s: int) -> None:
    for index in range(30):
        plan = plan_video(f"v{index}", "val", 1, duration_s)
        assert plan.shots[-1].end_s == duration_s
        assert plan.shots[0].topic is not None


def test_the_number_of_frames_follows_length_and_rate() -> None:
    plan = plan_video("v", "train", 1, 10)
    frames = list(draw_frames(plan, PictureFormat(64, 64, 3, 26)))
    assert len(frames) == 30
    assert {frame.size for frame in frames} == {(64, 64)}
    assert all(isinstance(frame, Image.Image) and frame.mode == "RGB" for frame in frames)
