import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrmodel.video.sampling import FrameSampling, count_clips, whole_clips


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
