from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from mrmodel.synthetic.annotations import (
    Query,
    comparable,
    draw_queries,
    relevant_clips,
    shows,
    windows_of,
)
from mrmodel.synthetic.render import annotate_corpus, plan_corpus
from mrmodel.synthetic.script import Shot, VideoPlan
from mrmodel.synthetic.vocabulary import Topic
from tests.synthetic.conftest import settings_of

PIG_SPINS = Topic("pig", "spin", "snow")
PIG_RESTS = Topic("pig", "still", "snow")


def shot(start: float, end: float, topic: Topic | None, **changes: Any) -> Shot:
    values: dict[str, Any] = {
        "start_s": start,
        "end_s": end,
        "place": "snow",
        "topic": topic,
        "shown_s": (start, end),
        "entrance": "cut",
        "exit": "cut",
        "position": (0.5, 0.5),
        "size": 0.6,
        "pace": 0.5,
        "drift": (0.0, 0.0),
        "crossfade_s": 0.0,
    }
    return Shot(**(values | changes))


def plan_of(*shots: Shot) -> VideoPlan:
    return VideoPlan("v", "train", 5, shots[-1].end_s, shots)


def default_size(clip_len_s: float = 2.0) -> list[tuple[VideoPlan, Query]]:
    settings = settings_of(duration_s=60, videos={"pretrain": 0, "train": 40, "val": 40, "test": 9})
    plans = plan_corpus(settings)
    by_vid = {plan.vid: plan for of_split in plans.values() for plan in of_split}
    queries = annotate_corpus(plans, [], 4, clip_len_s)
    return [(by_vid[query.row["vid"]], query) for each in queries.values() for query in each]


@pytest.mark.parametrize("clip_len_s", [2.0, 1.5, 7.0])
def test_schema_invariants(clip_len_s: float) -> None:
    found = default_size(clip_len_s)
    assert len(found) > 300
    for plan, query in found:
        row = query.row
        assert list(row) == [
            "qid",
            "query",
            "vid",
            "duration",
            "relevant_windows",
            "relevant_clip_ids",
            "saliency_scores",
        ]
        assert row["duration"] == plan.duration_s == 60
        ids = row["relevant_clip_ids"]
        assert ids == sorted(set(ids))
        assert ids[0] >= 0
        assert (ids[-1] + 1) * clip_len_s <= 60
        of_windows = [
            clip
            for start, end in row["relevant_windows"]
            for clip in range(round(start / clip_len_s), round(end / clip_len_s))
        ]
        assert of_windows == ids
        for start, end in row["relevant_windows"]:
            assert start % clip_len_s == pytest.approx(0, abs=1e-6)
            assert start < end <= 60
        # Windows are maximal: two of them never touch.
        assert all(first[1] < second[0] for first, second in pairwise(row["relevant_windows"]))
        assert len(row["saliency_scores"]) == len(ids)
        assert all(len(ratings) == 3 for ratings in row["saliency_scores"])
        assert all(
            isinstance(rating, int) and 0 <= rating <= 4
            for ratings in row["saliency_scores"]
            for rating in ratings
        )


def test_windows_contain_every_matching_shot_and_nothing_else() -> None:
    for plan, query in default_size():
        ids = set(query.row["relevant_clip_ids"])
        for clip in range(30):
            covered = sum(
                max(0.0, min(each.visible_s[1], 2 * clip + 2) - max(each.visible_s[0], 2 * clip))
                for each in plan.shots
                if shows(each, query.topic)
            )
            if abs(covered - 1) > 1e-6:
                assert (covered > 1) == (clip in ids), (query.row, clip, covered)


def test_queries_have_distractors_and_leave_most_of_the_video_out() -> None:
    found = default_size()
    small = [len(query.row["relevant_clip_ids"]) <= 15 for _, query in found]
    assert sum(small) / len(small) > 0.97
    distracted = [
        any(
            other.topic and not shows(other, query.topic)
            for other in plan.shots
            if other.topic
            and (
                other.topic.subject == query.topic.subject
                or other.topic.action == query.topic.action
                or other.place == query.topic.place
            )
        )
        for plan, query in found
    ]
    assert sum(distracted) / len(distracted) > 0.97


def test_a_clip_is_relevant_from_half_of_it_on() -> None:
    plan = plan_of(shot(0, 5.0, PIG_SPINS), shot(5.0, 11.1, PIG_RESTS), shot(11.1, 20.0, PIG_SPINS))
    assert relevant_clips(plan, PIG_SPINS, 2.0) == [0, 1, 2, 6, 7, 8, 9]
    assert relevant_clips(plan, PIG_RESTS, 2.0) == [2, 3, 4, 5]
    assert windows_of([0, 1, 2, 6, 7], 2.0) == [[0, 6], [12, 16]]
    assert windows_of([1], 1.5) == [[1.5, 3]]


def test_shots_that_touch_make_one_window() -> None:
    plan = plan_of(shot(0, 5, PIG_SPINS), shot(5, 10, PIG_RESTS), shot(10, 16, None))
    anything = Topic("pig", None, "snow")
    assert windows_of(relevant_clips(plan, anything, 2.0), 2.0) == [[0, 10]]


def test_a_late_subject_is_relevant_only_when_it_is_seen() -> None:
    late = shot(0, 10, PIG_SPINS, shown_s=(4.0, 10), entrance="fade")
    assert relevant_clips(plan_of(late), PIG_SPINS, 2.0) == [2, 3, 4]


def test_a_clip_much_longer_than_the_shot_still_gets_one_window() -> None:
    plan = plan_of(shot(0, 15, PIG_RESTS), shot(15, 19, PIG_SPINS), shot(19, 30, PIG_RESTS))
    assert relevant_clips(plan, PIG_SPINS, 10.0) == [1]


def test_ratings_follow_the_size_of_the_subject() -> None:
    def mean_rating(size: float) -> float:
        plan = plan_of(shot(0, 12, PIG_RESTS, size=size), shot(12, 30, None))
        (query,) = draw_queries(plan, 1, 2.0, ())
        ratings = [rating for clip in query.row["saliency_scores"] for rating in clip]
        return sum(ratings) / len(ratings)

    assert mean_rating(0.7) > 3 > mean_rating(0.3) > 1


def test_a_subject_coming_closer_is_rated_higher_in_the_end() -> None:
    topic = Topic("pig", "near", "snow")
    (query,) = draw_queries(plan_of(shot(0, 12, topic), shot(12, 30, None)), 1, 2.0, ())
    scores = [sum(ratings) for ratings in query.row["saliency_scores"]]
    assert scores[-1] > scores[0] + 3


def test_taken_sentences_are_avoided() -> None:
    plan = plan_of(shot(0, 10, PIG_SPINS), shot(10, 20, PIG_RESTS))
    first = draw_queries(plan, 3, 2.0, ())
    taken = {comparable(query.row["query"]) for query in first}
    assert not taken & {
        comparable(query.row["query"]) for query in draw_queries(plan, 3, 2.0, taken)
    }


def test_comparable_ignores_case_space_and_final_stop() -> None:
    assert comparable("A  Pig spins around.") == comparable("a pig spins around")
