import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrmodel.video.sampling import FrameSampling, count_clips, hero_indices, whole_clips


def test_targets_are_the_middles_of_equal_slots():
    sampling = FrameSampling(4, None)
    targets = [sampling.target_s(3, slot, 2.0) for slot in range(4)]
    assert targets == pytest.approx([6.25, 6.75, 7.25, 7.75])


def test_middle_takes_a_frame_on_the_target_and_ffmpeg_does_not():
    assert not FrameSampling(1, None, "middle").is_past(1.0, 1.0)
    assert FrameSampling(1, None, "ffmpeg_fps").is_past(1.0, 1.0)
    for rule in ("middle", "ffmpeg_fps"):
        assert not FrameSampling(1, None, rule).is_past(0.99, 1.0)
        assert FrameSampling(1, None, rule).is_past(1.01, 1.0)


@pytest.mark.parametrize(
    ("duration_s", "clips"),
    [(0.0, 1), (0.4, 1), (2.0, 1), (3.99, 1), (3.999, 2), (60.0, 30), (59.9999, 30), (150.6, 75)],
)
def test_count_clips_drops_the_tail(duration_s, clips):
    assert count_clips(duration_s, 2.0) == clips


@given(st.integers(1, 5000), st.sampled_from([0.1, 1 / 6, 1.0, 1.5, 2.0, 30.0]))
def test_exact_multiples_count_exactly(n_clips, clip_len_s):
    assert whole_clips(n_clips * clip_len_s, clip_len_s) == n_clips


def test_impossible_samplings_are_refused():
    with pytest.raises(ValueError, match="frames_per_clip = 0"):
        FrameSampling(0, None)
    with pytest.raises(ValueError, match="size"):
        FrameSampling(1, (0, 10))


def test_description_is_plain_json():
    sampling = FrameSampling(2, (64, 48), "middle", "area")
    expected = {"frames_per_clip": 2, "size": [64, 48], "rule": "middle", "resize": "area"}
    assert sampling.as_json() == expected


@pytest.mark.parametrize(
    ("frame_rate", "clip_frames", "last", "distinct"),
    [
        (30, 60, 59, 31),  # a whole clip, the last frame twice
        (24, 60, 50, 32),
        (25, 60, 52, 32),
        (60, 60, 59, 16),  # the last frame for half of them
        (30, 30, 29, 15 + 1),
        (0, 60, 0, 1),
    ],
)
def test_hero_looks_as_far_as_its_file_rate_says(frame_rate, clip_frames, last, distinct):
    indices = hero_indices(clip_frames, frame_rate, 32)
    assert (len(indices), indices[0], indices[-1]) == (32, 0, last)
    assert len(set(indices)) == distinct
    assert list(indices) == sorted(indices)


@pytest.mark.parametrize("clip_frames", [30, 60])
def test_hero_rounds_as_the_published_code(clip_frames):
    for frame_rate in range(1, 121):
        span = torch.linspace(0, 32 * 2 * frame_rate / 30 - 1, 32)
        expected = span.clamp(0, clip_frames - 1).long().tolist()
        assert list(hero_indices(clip_frames, frame_rate, 32)) == expected, frame_rate


def test_a_crop_is_square():
    with pytest.raises(ValueError, match="square"):
        FrameSampling(1, (20, 10), fit="crop")
    assert FrameSampling(1, (8, 8), fit="crop").as_json()["fit"] == "crop"
