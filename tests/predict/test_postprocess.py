"""Windows from raw outputs, in the default way and as published."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.predict.postprocess import (
    PostprocessSettings,
    RawPredictions,
    clamp_windows,
    decode,
    keep_best,
    limit_lengths,
    round_windows,
)


def raw_predictions(**changes: object) -> RawPredictions:
    raw = RawPredictions(
        spans_cxw=np.array([[[0.5, 0.5], [0.9, 0.4], [0.1, 0.1]]], dtype=np.float32),
        scores=np.array([[0.2, 0.9, 0.5]], dtype=np.float32),
        saliency=np.array([[0.1, 70000.0, -1.0, 5.0, 7.0]], dtype=np.float32),
        clip_mask=np.array([[True, True, True, True, False]]),
        duration_s=np.array([8.9]),
        clip_len_s=2.0,
    )
    return dataclasses.replace(raw, **changes)  # type: ignore[arg-type]


def test_default_windows_use_the_valid_clips_and_stay_inside_the_video() -> None:
    (answer,) = decode(raw_predictions(), PostprocessSettings())
    # T = 4 valid clips x 2 s, best score first; 0.7..1.1 of 8 s is cut at ... 8.8 s, not at 8 s.
    spans = [window[:2] for window in answer.windows]
    assert spans == [(5.6, 8.8), (0.4, 1.2), (2.0, 6.0)]
    assert [window[2] for window in answer.windows] == pytest.approx([0.9, 0.5, 0.2])
    assert answer.saliency == pytest.approx([0.1, 70000.0, -1.0, 5.0])
    (shorter,) = decode(raw_predictions(duration_s=np.array([8.0])), PostprocessSettings())
    assert shorter.windows[0][:2] == (5.6, 8.0)


def test_official_windows_use_the_annotated_duration_and_half_precision() -> None:
    settings = PostprocessSettings(official=True, clamp_s=(0.0, 9.0), round_to_s=2.0)
    (answer,) = decode(raw_predictions(), settings)
    # 8.9 s: 6.23..9.79 -> 6..(9 -> 4.5 units -> 4) 8; 0.445..1.335 -> 0..2; 2.225..6.675 -> 2..6.
    assert answer.windows == ((6.0, 8.0, 0.9), (0.0, 2.0, 0.5), (2.0, 6.0, 0.2))
    assert answer.saliency == (float(np.float16(0.1)), np.inf, -1.0, 5.0)


def test_official_without_a_clamp_may_start_before_the_video() -> None:
    raw = raw_predictions(spans_cxw=np.array([[[0.0, 0.5]]]), scores=np.array([[0.5]]))
    (answer,) = decode(raw, PostprocessSettings(official=True, round_to_s=1.0))
    assert answer.windows[0][0] == -2.0


def test_equal_scores_are_ranked_by_start_time_and_then_by_query() -> None:
    raw = raw_predictions(scores=np.array([[0.5, 0.5, 0.5]]))
    (answer,) = decode(raw, PostprocessSettings())
    assert [window[0] for window in answer.windows] == [0.4, 2.0, 5.6]
    # 2..6, 2..4 and 2..5 s start alike.
    alike = raw_predictions(
        spans_cxw=np.array([[[0.5, 0.5], [0.375, 0.25], [0.4375, 0.375]]]),
        scores=np.array([[0.5, 0.5, 0.5]]),
    )
    (answer,) = decode(alike, PostprocessSettings())
    assert [window[1] for window in answer.windows] == [6.0, 4.0, 5.0]
    (published,) = decode(raw, PostprocessSettings(official=True))
    assert [round(window[0], 4) for window in published.windows] == [2.225, 6.23, 0.445]


def test_windows_without_length_are_dropped() -> None:
    # In a video of 8 s: 4 s without length; 0.5 ms; 2 ms; beyond the end; 2..6 s.
    raw = raw_predictions(
        spans_cxw=np.array(
            [[[0.5, 0.0], [0.5, 0.0000625], [0.25, 0.00025], [1.2, 0.2], [0.5, 0.5]]]
        ),
        scores=np.array([[0.9, 0.8, 0.7, 0.6, 0.5]]),
        duration_s=np.array([8.0]),
    )
    (answer,) = decode(raw, PostprocessSettings(max_windows=2))
    assert answer.windows == ((1.999, 2.001, 0.7), (2.0, 6.0, 0.5))
    (suppressed,) = decode(raw, PostprocessSettings(nms_iou=0.0))
    assert suppressed.windows == ((1.999, 2.001, 0.7),)
    (published,) = decode(raw, PostprocessSettings(official=True))
    assert len(published.windows) == 5


def test_a_sample_may_be_left_without_windows() -> None:
    raw = raw_predictions(spans_cxw=np.array([[[0.5, 0.0]]]), scores=np.array([[0.5]]))
    for nms_iou in (-1.0, 0.5):
        (answer,) = decode(raw, PostprocessSettings(round_to_s=2.0, nms_iou=nms_iou))
        assert answer.windows == ()
        assert len(answer.saliency) == 4


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ((4.9, 5.2), (4.0, 6.0)),  # both ends would be 2.5 clips -> 4 s
        ((3.2, 3.3), (2.0, 4.0)),
        ((3.2, 5.1), (4.0, 6.0)),  # 1.6 and 2.55 clips -> 4..6 s as ever
        ((7.9, 8.8), (8.0, 8.9)),  # around 8.35 s: the last clip, which the video cuts short
        ((7.1, 8.9), (8.0, 8.9)),  # 3.55 and 4.45 clips -> 8..8, around 8.0 s
    ],
)
def test_rounding_leaves_at_least_a_clip(
    window: tuple[float, float], expected: tuple[float, float]
) -> None:
    start, end = window
    raw = raw_predictions(
        spans_cxw=np.array([[[(start + end) / 16, (end - start) / 8]]]), scores=np.array([[0.5]])
    )
    (answer,) = decode(raw, PostprocessSettings(round_to_s=2.0))
    assert answer.windows[0][:2] == expected


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.5, 40.0),
    st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=8),
    st.sampled_from([1.0, 2.0, 0.3]),
)
def test_rounded_windows_overlap_what_was_found_and_stay_in_the_video(
    duration: float, spans: list[tuple[float, float]], unit: float
) -> None:
    raw = RawPredictions(
        np.array([spans]),
        np.linspace(1.0, 0.5, len(spans))[None],
        np.zeros((1, 1)),
        np.ones((1, 1), dtype=bool),
        np.array([duration]),
        duration,
    )
    exact = decode(raw, PostprocessSettings())[0].windows
    rounded = decode(raw, PostprocessSettings(round_to_s=unit))[0].windows
    assert [window[2] for window in rounded] == [window[2] for window in exact]
    for (start, end, _), (low, high, _) in zip(rounded, exact, strict=True):
        assert 0.0 <= start < end <= duration
        assert min(end, high) >= max(start, low)
        # A clip, or what the video has of its last one.
        assert end - start >= unit * (1 - 1e-9) or end == duration


def test_at_most_max_windows_and_suppression() -> None:
    raw = raw_predictions(spans_cxw=np.array([[[0.5, 0.5], [0.5, 0.4], [0.1, 0.1]]]))
    (two,) = decode(raw, PostprocessSettings(max_windows=2))
    assert [window[2] for window in two.windows] == pytest.approx([0.9, 0.5])
    (apart,) = decode(raw, PostprocessSettings(nms_iou=0.5))
    assert [window[2] for window in apart.windows] == pytest.approx([0.9, 0.5])
    (close,) = decode(raw, PostprocessSettings(nms_iou=0.9))
    assert len(close.windows) == 3


def test_length_limits_apply_before_the_clamp() -> None:
    raw = raw_predictions(spans_cxw=np.array([[[0.95, 0.05]]]), scores=np.array([[0.5]]))
    (answer,) = decode(raw, PostprocessSettings(min_window_s=4.0, move="left"))
    assert answer.windows[0][:2] == (7.4, 8.9)


def test_length_limits_come_last_on_the_official_path() -> None:
    # 8.48..8.92 s -> 8..8 s, and the unused column 0..0 s with score 0 stays away.
    raw = raw_predictions(
        spans_cxw=np.array([[[8.7 / 8.9, 0.05], [0.5, 0.0], [0.0, 0.0]]], dtype=np.float32),
        scores=np.array([[0.5, 0.4, 0.0]], dtype=np.float32),
    )
    chosen = PostprocessSettings(
        official=True, clamp_s=(0.0, 150.0), round_to_s=2.0, min_window_s=2.0, move="center"
    )
    (answer,) = decode(raw, chosen)
    assert answer.windows == ((7.0, 9.0, 0.5), (3.0, 5.0, 0.4))
    # A query has a window at least, which the published evaluation needs.
    nothing = raw_predictions(spans_cxw=np.zeros((1, 3, 2)), scores=np.zeros((1, 3)))
    assert decode(nothing, chosen)[0].windows == ((-1.0, 1.0, 0.0),)


def test_official_windows_by_the_clips_that_the_model_read() -> None:
    settings = PostprocessSettings(official=True, by_clips=True)
    (answer,) = decode(raw_predictions(), settings)
    # Four valid clips of 2 s, although 8.9 s are annotated.
    assert answer.windows[2] == (2.0, 6.0, 0.2)


@pytest.mark.parametrize("official", [True, False])
def test_windows_may_keep_their_order_and_scores(official: bool) -> None:
    scores = np.array([[0.123456, 0.9, 0.5]])
    settings = PostprocessSettings(official=official, as_given=True, max_windows=2)
    (answer,) = decode(raw_predictions(scores=scores, duration_s=np.array([8.0])), settings)
    assert [window[2] for window in answer.windows] == [0.123456, 0.9]
    assert answer.windows[0][:2] == (2.0, 6.0)


def test_a_batch_gives_what_its_samples_give_alone() -> None:
    rng = np.random.default_rng(0)
    raw = RawPredictions(
        rng.random((6, 10, 2)).astype(np.float32),
        rng.random((6, 10)).astype(np.float32),
        rng.normal(size=(6, 30)).astype(np.float32),
        np.arange(30) < rng.integers(1, 31, 6)[:, None],
        rng.uniform(10, 60, 6),
        2.0,
    )
    chosen = PostprocessSettings(nms_iou=0.4, round_to_s=2.0)
    together = decode(raw, chosen)
    for sample in range(6):
        row = slice(sample, sample + 1)
        alone = RawPredictions(
            raw.spans_cxw[row],
            raw.scores[row],
            raw.saliency[row],
            raw.clip_mask[row],
            raw.duration_s[row],
            2.0,
        )
        assert decode(alone, chosen) == [together[sample]]


def test_inputs_are_left_alone() -> None:
    raw = raw_predictions()
    before = [np.copy(getattr(raw, field)) for field in ("spans_cxw", "scores", "saliency")]
    decode(raw, PostprocessSettings(official=True, clamp_s=(0.0, 2.0), round_to_s=2.0))
    decode(raw, PostprocessSettings(nms_iou=0.1))
    after = [raw.spans_cxw, raw.scores, raw.saliency]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_rounding_takes_halves_to_the_even_multiple() -> None:
    windows = np.array([[1.0, 3.0], [5.0, 7.0], [2.9, 3.1]])
    assert round_windows(windows, 2.0).tolist() == [[0.0, 4.0], [4.0, 8.0], [2.0, 4.0]]


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        ("left", [[3.0, 7.0], [0.0, 10.0], [0.0, 5.0]]),
        ("right", [[1.0, 5.0], [10.0, 20.0], [0.0, 5.0]]),
        ("center", [[2.0, 6.0], [5.0, 15.0], [0.0, 5.0]]),
    ],
)
def test_length_limits_move_the_named_end(move: str, expected: list[list[float]]) -> None:
    windows = np.array([[3.0, 5.0], [0.0, 20.0], [0.0, 5.0]])
    assert limit_lengths(windows, 4.0, 10.0, move).tolist() == expected  # type: ignore[arg-type]


def test_a_window_outside_is_clamped_to_the_border() -> None:
    assert clamp_windows(np.array([[160.0, 170.0]]), 0.0, 150.0).tolist() == [[150.0, 150.0]]


window = st.tuples(st.integers(0, 20), st.integers(0, 10)).map(
    lambda p: [float(p[0]), float(sum(p))]
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(window, min_size=8, max_size=8), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(1, 8),
)
def test_suppression_equals_a_plain_loop(
    batch: list[list[list[float]]], threshold: float, limit: int
) -> None:
    scores = np.tile(np.linspace(1.0, 0.1, 8), (len(batch), 1))
    kept = keep_best(np.array(batch), scores, threshold, limit)
    for row, windows in zip(kept, batch, strict=True):
        chosen: list[int] = []
        for rank, candidate in enumerate(windows):
            if all(plain_iou(candidate, windows[other]) <= threshold for other in chosen):
                chosen.append(rank)
        assert np.flatnonzero(row).tolist() == chosen[:limit]


def plain_iou(first: list[float], second: list[float]) -> float:
    overlap = min(first[1], second[1]) - max(first[0], second[0])
    hull = max(first[1], second[1]) - min(first[0], second[0])
    return overlap / hull if overlap > 0 else 0.0
