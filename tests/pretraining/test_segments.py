from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrmodel.config.intervid import SegmentSettings
from mrmodel.pretraining.intervid.segments import Intervals, Segments, choose_segments

CLIP_MS = 2000
RANDOM = SegmentSettings(length_s=150.0, offset="random", min_clips=10)
CENTER = SegmentSettings(length_s=150.0, offset="center", min_clips=10)


def choose(
    start_s: float, end_s: float, duration_s: float, rule: SegmentSettings = RANDOM, qid: int = 1
) -> tuple[Segments, float, float]:
    """The segment of one interval, its start and its end in seconds."""
    columns = [np.array([round(1000 * value)]) for value in (start_s, end_s, duration_s)]
    found = choose_segments(Intervals(np.array([qid]), *columns), rule, CLIP_MS, seed=7)
    first = int(found.first_clip[0])
    return found, first * 2.0, (first + int(found.n_clips[0])) * 2.0


@pytest.mark.parametrize("rule", [RANDOM, CENTER])
@given(st.integers(4000, 150_000), st.integers(0, 900_000), st.integers(0, 300_000), st.data())
def test_segment_contains_its_interval(
    rule: SegmentSettings, length: int, start: int, rest: int, data: st.DataObject
) -> None:
    qid = data.draw(st.integers(0, 2**53 - 1))
    end, duration = start + length, start + length + rest
    found, first_s, last_s = choose(start / 1000, end / 1000, duration / 1000, rule, qid)
    whole_ms = duration // CLIP_MS * CLIP_MS
    assert first_s >= 0
    assert last_s * 1000 <= whole_ms
    assert last_s - first_s <= 150
    reachable = min(end, whole_ms) - start
    if length <= 150_000 - CLIP_MS:
        assert first_s * 1000 <= start
        assert last_s * 1000 >= min(end, whole_ms)
        assert last_s - first_s == min(150.0, whole_ms / 1000)
        kept = int(found.interval_end_ms[0] - found.interval_start_ms[0])
        assert kept == max(reachable, 0)
    assert int(found.lost_ms[0]) <= 2 * CLIP_MS
    assert 0 <= int(found.interval_start_ms[0]) <= int(found.interval_end_ms[0])
    assert int(found.interval_end_ms[0]) <= int(found.n_clips[0]) * CLIP_MS


def test_interval_at_the_start_and_at_the_end_of_the_video() -> None:
    assert choose(0, 10, 600)[1:] == (0.0, 150.0)
    assert choose(590, 600, 600)[1:] == (450.0, 600.0)


def test_short_video_is_the_segment() -> None:
    found, first_s, last_s = choose(20, 30, 61.9)
    assert (first_s, last_s) == (0.0, 60.0)
    assert (int(found.interval_start_ms[0]), int(found.interval_end_ms[0])) == (20_000, 30_000)
    assert int(found.lost_ms[0]) == 0


def test_interval_in_the_remainder_after_the_last_clip_still_gets_a_long_segment() -> None:
    # Drawn from the real duration there would be no grid point between 13.5 and 13.7.
    found, first_s, last_s = choose(150, 163.5, 163.7)
    assert (first_s, last_s) == (12.0, 162.0)
    assert int(found.lost_ms[0]) == 1500


def test_interval_of_exactly_the_segment_length() -> None:
    found, first_s, last_s = choose(10, 160, 600)
    assert (first_s, last_s) == (10.0, 160.0)
    assert int(found.lost_ms[0]) == 0


def test_interval_of_almost_the_segment_length_off_the_grid_is_cut() -> None:
    found, first_s, last_s = choose(11, 161, 600)
    assert (first_s, last_s) == (10.0, 160.0)
    assert int(found.interval_start_ms[0]) == 1000
    assert int(found.interval_end_ms[0]) == 150_000
    assert int(found.lost_ms[0]) == 1000


def test_interval_beyond_the_video_is_lost() -> None:
    found, _, _ = choose(100, 120, 60)
    assert int(found.lost_ms[0]) == 20_000
    found, _, _ = choose(100, 120, 1)
    assert int(found.n_clips[0]) == 0


def test_center_puts_the_interval_into_the_middle() -> None:
    _, first_s, last_s = choose(300, 320, 900, CENTER)
    assert abs((first_s + last_s) / 2 - 310) <= 1
    assert choose(10, 30, 900, CENTER)[1] == 0.0


def test_offsets_are_spread_over_all_places() -> None:
    count = 4000
    qids = np.arange(count)
    intervals = Intervals(qids, *(np.full(count, ms) for ms in (400_000, 410_000, 900_000)))
    found = choose_segments(intervals, RANDOM, CLIP_MS, seed=7)
    places = found.interval_start_ms / CLIP_MS
    assert set(places.tolist()) == set(range(71))
    assert np.mean(places) == pytest.approx(35, abs=1.5)
    assert np.bincount(places.astype(int)).max() < 3 * count / 71
    again = choose_segments(intervals, RANDOM, CLIP_MS, seed=8)
    assert (again.first_clip != found.first_clip).mean() > 0.9


def test_a_draw_depends_on_its_own_query_alone() -> None:
    columns = [np.array([ms] * 3) for ms in (400_000, 410_000, 900_000)]
    three = choose_segments(Intervals(np.array([5, 6, 7]), *columns), RANDOM, CLIP_MS, seed=7)
    alone = choose(400, 410, 900, qid=6)[0]
    assert int(three.first_clip[1]) == int(alone.first_clip[0])
