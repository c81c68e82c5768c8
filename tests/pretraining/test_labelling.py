"""Eq. 16-18: against a loop written from the equations, and properties that must hold."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mrmodel.config.intervid import LabelSettings
from mrmodel.pretraining.intervid.labelling import (
    REASONS,
    Labels,
    Similarities,
    annotated_clips,
    annotated_sds,
    cosine,
    label,
    sd_floor,
)
from tests.pretraining.tables import settings

PAPER, ROBUST = settings("paper").labels, settings("robust").labels


def options(base: LabelSettings = PAPER, **changes: Any) -> LabelSettings:
    return base.model_copy(update=changes)


@dataclass
class Segment:
    """One segment for the tests: scores (NaN = invalid clip) and the annotated clips."""

    scores: list[float]
    annotated: list[int]
    caption_valid: bool = True

    @property
    def valid(self) -> list[bool]:
        return [self.caption_valid and not math.isnan(score) for score in self.scores]


def flat(segments: list[Segment]) -> Similarities:
    counts = [len(segment.scores) for segment in segments]
    score = np.array([s for segment in segments for s in segment.scores], dtype=np.float64)
    valid = np.array([v for segment in segments for v in segment.valid], dtype=bool)
    annotated = np.array(
        [
            index in segment.annotated
            for segment in segments
            for index in range(len(segment.scores))
        ],
        dtype=bool,
    )
    return Similarities(
        offsets=np.cumsum([0, *counts]),
        score=np.where(valid, score, 0.0),
        valid=valid,
        annotated=annotated & valid,
        caption_valid=np.array([segment.caption_valid for segment in segments], dtype=bool),
    )


def moments(values: list[float]) -> tuple[float, float]:
    """Mean and population sd; the sums run in order, as those of bincount do."""
    total = 0.0
    for value in values:
        total += value
    mean = total / max(len(values), 1)
    squares = 0.0
    for value in values:
        squares += (value - mean) * (value - mean)
    return mean, math.sqrt(squares / max(len(values), 1))


def naive_grade(score: float, mean: float, sd: float) -> int:
    if sd < 1e-6:
        return 4 if score - mean > 1e-6 else 2 if score - mean < -1e-6 else 3
    if score - mean > 1.5 * sd:
        return 4
    if score - mean > 1e-9:
        return 3
    return 2 if score - mean > -1.5 * sd else 1


def runs_of(positive: list[bool]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for index, is_positive in enumerate(positive):
        if is_positive and runs and runs[-1][1] == index - 1:
            runs[-1] = (runs[-1][0], index)
        elif is_positive:
            runs.append((index, index))
    return runs


def naive(segment: Segment, rules: LabelSettings, floor: float) -> dict[str, Any]:
    """One segment, clip by clip, straight from A.4-A.7."""
    scores, valid = segment.scores, segment.valid
    original = [index for index in segment.annotated if valid[index]]
    mean, sd = moments([scores[index] for index in original])
    sd = max(sd, floor)
    threshold = mean - rules.threshold_std * sd
    positive = [
        bool(original) and ok and (score >= threshold - 1e-6)
        for score, ok in zip(scores, valid, strict=True)
    ]
    if rules.keep_original:
        positive = [was or index in original for index, was in enumerate(positive)]
    grade_mean, grade_sd = mean, sd
    if rules.grade_stats == "new":
        grade_mean, grade_sd = moments([s for s, p in zip(scores, positive, strict=True) if p])
        grade_sd = max(grade_sd, floor)
    merged: list[tuple[int, int]] = []
    for first, last in runs_of(positive):
        between = range(merged[-1][1] + 1, first) if merged else range(0)
        close = bool(merged) and len(between) <= rules.gap_merge
        if close and all(valid[index] for index in between):
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    windows = [
        (first, last)
        for first, last in merged
        if last - first + 1 >= rules.min_run or any(first <= index <= last for index in original)
    ]
    grades = [0] * len(scores)
    for first, last in windows:
        for index in range(first, last + 1):
            score = scores[index]
            grades[index] = naive_grade(score, grade_mean, grade_sd) if positive[index] else 1
    covered = sum(grade > 0 for grade in grades) / max(len(grades), 1)
    reason = "accepted"
    if not rules.min_coverage <= covered <= rules.max_coverage:
        reason = "coverage"
    if rules.max_windows is not None and len(windows) > rules.max_windows:
        reason = "windows"
    if not original:
        reason = "no_annotated_clip"
    if valid.count(False) / max(len(valid), 1) > rules.max_invalid_share:
        reason = "invalid_clips"
    if not segment.caption_valid:
        reason = "bad_caption"
    return {"grades": grades, "windows": windows, "reason": reason, "threshold": threshold}


def result_of(labels: Labels, similarities: Similarities, index: int) -> dict[str, Any]:
    first, last = similarities.offsets[index : index + 2]
    own = labels.window_segment == index
    starts, ends = labels.window_first[own].tolist(), labels.window_last[own].tolist()
    return {
        "grades": labels.grade[first:last].tolist(),
        "windows": list(zip(starts, ends, strict=True)),
        "reason": REASONS[labels.reason[index]],
        "threshold": float(labels.threshold[index]),
    }


def label_one(
    scores: list[float], annotated: list[int], rules: LabelSettings = PAPER, floor: float = 0.0
) -> dict[str, Any]:
    similarities = flat([Segment(scores, annotated)])
    return result_of(label(similarities, rules, floor), similarities, 0)


# Few distinct values make ties with the mean and the bin edges frequent.
coarse = st.sampled_from([0.1, 0.2, 0.25, 0.28, 0.3, 0.31, 0.32, 0.35, 0.4, math.nan])
fine = st.floats(-1, 1, width=32)


@st.composite
def segments(draw: st.DrawFn, most: int = 40) -> Segment:
    count = draw(st.integers(0, most))
    scores = draw(st.lists(st.one_of(coarse, fine), min_size=count, max_size=count))
    annotated: list[int] = []
    if count:
        first = draw(st.integers(0, count - 1))
        annotated = list(range(first, draw(st.integers(first, count - 1)) + 1))
    return Segment(scores, annotated, draw(st.integers(0, 9)) > 0)


rule_sets = st.builds(
    LabelSettings,
    max_invalid_share=st.sampled_from([0.0, 0.2, 1.0]),
    threshold_std=st.sampled_from([0.0, 1.0, 3.0]),
    sd_floor_quantile=st.none(),
    keep_original=st.booleans(),
    grade_stats=st.sampled_from(["original", "new"]),
    gap_merge=st.integers(0, 3),
    min_run=st.integers(1, 4),
    max_windows=st.sampled_from([None, 1, 3]),
    min_coverage=st.sampled_from([0.0, 0.1]),
    max_coverage=st.sampled_from([0.8, 1.0]),
    annotators=st.just(3),
)


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.lists(segments(), max_size=6), rule_sets, st.sampled_from([0.0, 0.01, 0.1]))
def test_flat_form_equals_the_loop(
    parts: list[Segment], rules: LabelSettings, floor: float
) -> None:
    similarities = flat(parts)
    labels = label(similarities, rules, floor)
    for index, segment in enumerate(parts):
        assert result_of(labels, similarities, index) == naive(segment, rules, floor)


@hypothesis_settings(deadline=None)
@given(st.lists(segments(12), min_size=1, max_size=8), rule_sets)
def test_a_segment_does_not_depend_on_the_others(
    parts: list[Segment], rules: LabelSettings
) -> None:
    similarities = flat(parts)
    labels = label(similarities, rules, 0.01)
    for index, part in enumerate(parts):
        alone = flat([part])
        assert result_of(label(alone, rules, 0.01), alone, 0) == result_of(
            labels, similarities, index
        )


@hypothesis_settings(deadline=None)
@given(st.lists(segments(), min_size=1, max_size=4), rule_sets)
def test_windows_and_grades_agree(parts: list[Segment], rules: LabelSettings) -> None:
    similarities = flat(parts)
    labels = label(similarities, rules)
    for index, segment in enumerate(parts):
        found = result_of(labels, similarities, index)
        positive = [grade > 0 for grade in found["grades"]]
        assert runs_of(positive) == found["windows"]
        assert set(found["grades"]) <= {0, 1, 2, 3, 4}
        assert len(found["grades"]) == len(segment.scores)


@hypothesis_settings(deadline=None)
@given(segments(), rule_sets)
def test_higher_grades_have_higher_scores(segment: Segment, rules: LabelSettings) -> None:
    # Clips that fill a gap get grade 1 whatever their score.
    rules = rules.model_copy(update={"gap_merge": 0})
    grades = label_one(segment.scores, segment.annotated, rules)["grades"]
    scores = [
        [score for score, grade in zip(segment.scores, grades, strict=True) if grade == wanted]
        for wanted in (1, 2, 3, 4)
    ]
    bounds = [(min(group), max(group)) for group in scores if group]
    for (_, highest), (lowest, _) in itertools.pairwise(bounds):
        assert highest < lowest


normal = st.lists(st.floats(0.0, 1.0), min_size=4, max_size=40)


def well_apart(scores: list[float], annotated: list[int]) -> bool:
    """Whether rounding cannot move a clip over a threshold."""
    mean, sd = moments([scores[index] for index in annotated])
    edges = [mean, mean - 3 * sd, mean - 1.5 * sd, mean + 1.5 * sd]
    return sd > 1e-3 and all(abs(score - edge) > 1e-5 for score in scores for edge in edges)


@hypothesis_settings(deadline=None)
@given(normal, st.floats(-1, 1), st.floats(0.1, 10))
def test_shift_and_scale_change_nothing(scores: list[float], shift: float, scale: float) -> None:
    annotated = list(range(len(scores) // 2))
    assume(well_apart(scores, annotated))
    expected = label_one(scores, annotated)
    moved = label_one([scale * score + shift for score in scores], annotated)
    assert moved["grades"] == expected["grades"]
    assert moved["windows"] == expected["windows"]


@hypothesis_settings(deadline=None)
@given(segments(), st.booleans())
def test_few_annotated_clips_all_stay_positive(segment: Segment, new: bool) -> None:
    segment.annotated = segment.annotated[:10]
    rules = options(grade_stats="new" if new else "original")
    grades = label_one(segment.scores, segment.annotated, rules)["grades"]
    assert all(grades[index] > 0 for index in segment.annotated if segment.valid[index])


@hypothesis_settings(deadline=None)
@given(segments(), st.floats(0, 0.2), st.floats(0, 0.2))
def test_a_higher_floor_never_shrinks_the_positives(
    segment: Segment, first: float, second: float
) -> None:
    low, high = sorted([first, second])
    few = label_one(segment.scores, segment.annotated, floor=low)["grades"]
    many = label_one(segment.scores, segment.annotated, floor=high)["grades"]
    assert all(after > 0 for before, after in zip(few, many, strict=True) if before > 0)


def test_grades_of_a_worked_example() -> None:
    # mean 0.3, sd 0.1: the annotated clips 0.2 and 0.4; S_min 0; edges 0.15, 0.3, 0.45.
    scores = [0.2, 0.4, 0.46, 0.44, 0.31, 0.29, 0.16, 0.14, 0.01, -0.01]
    found = label_one(scores, [0, 1])
    assert found["grades"] == [2, 3, 4, 3, 3, 2, 2, 1, 1, 0]
    assert found["windows"] == [(0, 8)]
    assert found["threshold"] == pytest.approx(0.0, abs=1e-12)


def test_new_statistics_are_those_of_all_positive_clips() -> None:
    scores = [0.2, 0.4, 0.46, 0.44, 0.31, 0.29, 0.16, 0.14, 0.01, -0.01]
    mean, sd = moments(scores[:9])
    expected = [naive_grade(score, mean, sd) for score in scores[:9]] + [0]
    assert label_one(scores, [0, 1], options(grade_stats="new"))["grades"] == expected


def test_three_annotated_clips_never_reach_grade_4() -> None:
    for seed in range(50):
        scores = np.random.default_rng(seed).normal(0.3, 0.02, 3).tolist()
        assert max(label_one(scores, [0, 1, 2])["grades"]) < 4


def test_single_annotated_clip() -> None:
    found = label_one([0.1, 0.3, 0.5, 0.3], [1])
    assert found["grades"] == [0, 3, 4, 3]


def test_constant_scores_have_grade_3() -> None:
    for rules in (PAPER, options(grade_stats="new")):
        assert label_one([0.3] * 7, [2, 3, 4], rules)["grades"] == [3] * 7


def test_constant_scores_with_a_floor_have_one_grade() -> None:
    # The mean of seven equal numbers may miss them by a rounding error.
    for value in (0.1, 0.3, 0.7, 1 / 3):
        for rules in (PAPER, options(grade_stats="new")):
            assert label_one([value] * 7, [2, 3, 4], rules, floor=0.01)["grades"] == [2] * 7


def test_identical_clips_are_refused_by_coverage() -> None:
    assert label_one([0.3] * 20, [2, 3, 4], ROBUST)["reason"] == "coverage"
    assert label_one([0.3] * 20, [2, 3, 4], PAPER)["reason"] == "accepted"


def test_invalid_clip_in_the_interval_is_left_out_of_the_statistics() -> None:
    found = label_one([0.2, math.nan, 0.4, 0.1, -0.1, 0.0, 0.3], [0, 1, 2])
    assert found["threshold"] == pytest.approx(0.0, abs=1e-12)
    assert found["grades"][1] == 0
    assert found["windows"][0] == (0, 0)
    assert found["reason"] == "accepted"


def test_interval_of_invalid_clips_is_refused() -> None:
    found = label_one([math.nan, *[0.3] * 9], [0])
    assert found["reason"] == "no_annotated_clip"
    assert found["grades"] == [0] * 10


def test_too_many_invalid_clips_are_refused() -> None:
    assert label_one([math.nan] * 2 + [0.3] * 8, [5])["reason"] == "accepted"
    assert label_one([math.nan] * 3 + [0.3] * 7, [5])["reason"] == "invalid_clips"


def test_single_clip_segment() -> None:
    found = label_one([0.3], [0])
    assert (found["grades"], found["windows"], found["reason"]) == ([3], [(0, 0)], "accepted")


def test_no_segments_at_all() -> None:
    labels = label(flat([]), ROBUST, 0.1)
    assert len(labels.grade) == len(labels.reason) == len(labels.window_first) == 0


def test_a_narrower_threshold_lets_fewer_clips_in() -> None:
    scores = [0.2, 0.4, 0.31, 0.21, 0.19, 0.11, 0.01]
    positives = [
        sum(grade > 0 for grade in label_one(scores, [0, 1], options(threshold_std=sds))["grades"])
        for sds in (3.0, 2.0, 1.0, 0.0)
    ]
    assert positives == [7, 6, 4, 2]


def test_outlier_of_a_long_interval_may_be_dropped_or_kept() -> None:
    scores = [0.3, 0.31] * 10 + [0.05]
    annotated = list(range(21))
    assert label_one(scores, annotated)["grades"][20] == 0
    assert label_one(scores, annotated, options(keep_original=True))["grades"][20] == 1


def test_gaps_are_filled_with_grade_1_and_not_over_invalid_clips() -> None:
    scores = [0.2, 0.4, -0.5, 0.4, -0.5, -0.5, 0.4, math.nan, 0.4]
    rules = options(gap_merge=1, max_invalid_share=1.0)
    found = label_one(scores, [0, 1], rules)
    assert found["windows"] == [(0, 3), (6, 6), (8, 8)]
    assert found["grades"] == [2, 3, 1, 3, 0, 0, 3, 0, 3]


def test_short_runs_go_but_the_annotated_one_stays() -> None:
    scores = [0.4, -0.5, 0.2, -0.5, 0.4, 0.4, -0.5, 0.2]
    found = label_one(scores, [2, 7], options(min_run=2))
    assert found["windows"] == [(2, 2), (4, 5), (7, 7)]


def test_too_many_windows_are_refused() -> None:
    scores = [0.2, 0.4] + [-0.5, 0.4] * 5
    assert label_one(scores, [0, 1], options(max_windows=5))["reason"] == "windows"
    assert label_one(scores, [0, 1], options(max_windows=6))["reason"] == "accepted"


def test_sd_floor_is_a_quantile_of_segments_with_four_annotated_clips() -> None:
    parts = [
        Segment([0.1, 0.3, 0.1, 0.3, 0.9], [0, 1, 2, 3]),
        Segment([0.1, 0.5, 0.1, 0.5], [0, 1, 2, 3]),
        Segment([0.1, 0.9, 0.9], [0, 1, 2]),
        Segment([math.nan, 0.1, 0.9, 0.9], [0, 1, 2, 3]),
    ]
    assert sd_floor(annotated_sds(flat(parts)), 0.5) == pytest.approx(0.15)
    assert sd_floor(annotated_sds(flat(parts)), 0.0) == pytest.approx(0.1)
    assert sd_floor(annotated_sds(flat(parts)), None) == 0.0
    assert sd_floor(annotated_sds(flat(parts[2:])), 0.1) == 0.0
    assert sd_floor(annotated_sds(flat([])), 0.1) == 0.0


@given(
    st.integers(1, 12),
    st.integers(0, 30_000),
    st.integers(0, 30_000),
    st.sampled_from([1000, 2000]),
)
def test_annotated_clips_are_those_half_covered(
    count: int, first_ms: int, second_ms: int, clip_ms: int
) -> None:
    start, end = sorted([first_ms, second_ms])
    overlaps = [
        max(0, min(end, (index + 1) * clip_ms) - max(start, index * clip_ms))
        for index in range(count)
    ]
    expected = [2 * overlap >= clip_ms for overlap in overlaps]
    if not any(expected) and max(overlaps) > 0:
        expected[overlaps.index(max(overlaps))] = True
    # The neighbours on both sides must not matter.
    offsets = np.array([0, 3, 3 + count, 5 + count])
    starts, ends = np.array([0, start, 100]), np.array([9000, end, 300])
    found = annotated_clips(offsets, starts, ends, clip_ms)
    assert found[3 : 3 + count].tolist() == expected


def test_cosine() -> None:
    generator = np.random.default_rng(0)
    clips = generator.normal(size=(50, 16)).astype(np.float32)
    captions = generator.normal(size=(3, 16)).astype(np.float32)
    segment = np.sort(generator.integers(0, 3, 50))
    score, valid, caption_valid = cosine(clips, captions, segment)
    assert score.dtype == np.float32
    assert valid.all()
    assert caption_valid.all()
    double, text = clips.astype(np.float64), captions[segment].astype(np.float64)
    norms = np.linalg.norm(double, axis=1) * np.linalg.norm(text, axis=1)
    np.testing.assert_allclose(score, (double * text).sum(1) / norms, atol=1e-6)
    scaled = cosine(clips * 7, captions * 0.3, segment)[0]
    np.testing.assert_allclose(scaled, score, atol=1e-6)


def test_cosine_does_not_depend_on_the_other_rows() -> None:
    generator = np.random.default_rng(0)
    clips = generator.normal(size=(500, 384)).astype(np.float32)
    captions = generator.normal(size=(20, 384)).astype(np.float32)
    segment = np.repeat(np.arange(20), 25)
    whole = cosine(clips, captions, segment)[0]
    for index in (0, 7, 19):
        part = slice(25 * index, 25 * index + 25)
        alone = cosine(clips[part], captions[index : index + 1], np.zeros(25, dtype=np.int64))[0]
        np.testing.assert_array_equal(alone, whole[part])


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
def test_unusable_vectors_are_marked(bad: float) -> None:
    clips = np.ones((4, 3), dtype=np.float32)
    clips[1] = bad
    captions = np.ones((2, 3), dtype=np.float32)
    score, valid, caption_valid = cosine(clips, captions, np.array([0, 0, 1, 1]))
    assert valid.tolist() == [True, False, True, True]
    assert score.tolist() == pytest.approx([1, 0, 1, 1])
    captions[1] = bad
    _, valid, caption_valid = cosine(clips, captions, np.array([0, 0, 1, 1]))
    assert valid.tolist() == [True, False, False, False]
    assert caption_valid.tolist() == [True, False]
