"""Highlight metrics against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.evaluate import highlight
from mrmodel.evaluate.highlight import (
    HighlightArrays,
    interpolated_ap,
    rate_highlights,
    trapezoid_ap,
    tvsum_ap,
    youtube_ap,
)
from mrmodel.evaluate.ragged import Ragged


def plain_interpolated_ap(scores: list[float], positive: list[bool]) -> float:
    levels = sorted(set(scores), reverse=True)
    counts = [
        (
            sum(p for s, p in zip(scores, positive, strict=True) if s >= level),
            sum(s >= level for s in scores),
        )
        for level in levels
    ]
    precision = [true / retrieved for true, retrieved in counts]
    steps = [
        max(precision[step:])
        for step, (true, _) in enumerate(counts)
        if true > (counts[step - 1][0] if step else 0)
    ]
    return sum(steps) / len(steps) if steps else 0.0


video = st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(st.lists(video, min_size=1, max_size=5))
def test_interpolated_ap_equals_a_plain_loop(videos: list[list[tuple[int, bool]]]) -> None:
    scores = ragged([[float(score) for score, _ in clips] for clips in videos])
    labels = ragged([[float(label) for _, label in clips] for clips in videos])
    ours = interpolated_ap(scores.padded(9.0), labels.padded(1.0)[:, None] > 0, scores.valid())
    for value, clips in zip(ours[:, 0], videos, strict=True):
        expected = plain_interpolated_ap([s for s, _ in clips], [p for _, p in clips])
        assert value == pytest.approx(expected, abs=1e-12)


def test_only_and_no_positive_clips() -> None:
    scores, valid = np.array([[3.0, 1.0, 1.0]]), np.ones((1, 3), dtype=bool)
    positive = np.array([[[True, True, True], [False, False, False]]])
    assert interpolated_ap(scores, positive, valid).tolist() == [[1.0, 0.0]]


def test_too_short_lists_are_filled_with_zeros_or_put_last() -> None:
    # Clip 2 is the only highlight and has no score; the others have negative ones.
    arrays = one_video([-1.0, -2.0], {2: [4, 4, 4]}, n_clips=3)
    published = rate_highlights(arrays, missing_clips_last=False)
    clean = rate_highlights(arrays, missing_clips_last=True)
    assert published.ap[0, 2].tolist() == [1.0, 1.0, 1.0]
    assert clean.ap[0, 2].tolist() == pytest.approx([1 / 3] * 3)
    assert published.hit[0].tolist() == clean.hit[0].tolist() == [0.0, 0.0, 0.0]


def test_a_best_clip_beyond_the_video_is_a_miss_only_as_published() -> None:
    arrays = one_video([0.0, 1.0, 7.0], {1: [4, 0, 0]}, n_clips=2)
    assert rate_highlights(arrays, missing_clips_last=False).hit[0].tolist() == [0.0, 0.0, 0.0]
    assert rate_highlights(arrays, missing_clips_last=True).hit[0].tolist() == [1.0, 1.0, 1.0]


def test_equal_best_scores_take_the_first_clip() -> None:
    arrays = one_video([1.0, 1.0], {0: [2, 0, 0], 1: [4, 4, 4]}, n_clips=2)
    assert rate_highlights(arrays, missing_clips_last=False).hit[0].tolist() == [1.0, 0.0, 0.0]


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 30, 40)
    scores = ragged([rng.normal(size=count + rng.integers(-1, 3)).tolist() for count in counts])
    ids = ragged([np.arange(count, dtype=float).tolist() for count in counts])
    ratings = Ragged(rng.integers(0, 5, (counts.sum(), 3)).astype(float), counts)
    arrays = HighlightArrays(scores, ids, ratings, counts)
    whole = rate_highlights(arrays, missing_clips_last=False)
    monkeypatch.setattr(highlight, "_BLOCK", 100)
    blocks = rate_highlights(arrays, missing_clips_last=False)
    np.testing.assert_allclose(whole.ap, blocks.ap, rtol=1e-12)
    assert np.array_equal(whole.hit, blocks.hit)


def test_trapezoid_by_hand() -> None:
    # Positive, negative, positive: recall 1/2, 1/2, 1 and precision 1, 1/2, 2/3.
    area = trapezoid_ap(np.array([[True, False, True]]))
    assert area.tolist() == pytest.approx([0.5 * 1.0 + 0.5 * (0.5 + 2 / 3) / 2])


def test_tvsum_takes_the_lower_median_and_the_five_best() -> None:
    ratings = np.array([[1.0], [2.0], [3.0], [4.0]])
    # The lower median is 2, so clips 2 and 3 are positive; with the mean of 2 and 3 likewise, but
    # clip 1 (rating 2) must not be.
    assert tvsum_ap(np.array([0.0, 0.0, 9.0, 8.0]), ratings).tolist() == [1.0]
    assert tvsum_ap(np.array([9.0, 8.0, -1.0, -2.0]), ratings)[0] < 0.5
    assert tvsum_ap(np.array([1.0, 2.0]), np.full((2, 4), 3.0)).tolist() == [0.0] * 4


def test_youtube_without_highlight_has_no_figure() -> None:
    assert youtube_ap(np.array([1.0, 2.0]), np.array([0.0, 0.0])) is None
    assert youtube_ap(np.array([1.0, 2.0, 5.0]), np.array([0.0, 1.0])) == 1.0


def one_video(scores: list[float], ratings: dict[int, list[int]], n_clips: int) -> HighlightArrays:
    table = np.array(list(ratings.values()), dtype=float)
    return HighlightArrays(
        ragged([scores]),
        ragged([[float(clip) for clip in ratings]]),
        Ragged(table, np.array([len(table)])),
        np.array([n_clips]),
    )


def ragged(lists: list[list[float]]) -> Ragged:
    flat = [value for values in lists for value in values]
    return Ragged(np.array(flat, dtype=float), np.array(list(map(len, lists))))
