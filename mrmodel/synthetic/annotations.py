"""Queries about a planned video, in the QVHighlights schema.

Windows lie on the clip grid, as in QVHighlights, although cuts do not: a clip is relevant if the
matching shots cover at least half of it. Ratings follow from the poses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from mrmodel.features.keys import normalise_query
from mrmodel.files import derive_seed
from mrmodel.synthetic.motion import Pose, pose_at
from mrmodel.synthetic.script import Shot, VideoPlan
from mrmodel.synthetic.vocabulary import Kind, Topic, word_query
from mrmodel.video.sampling import count_clips

KIND_WEIGHTS: dict[Kind, float] = {
    "subject_action_place": 0.4,
    "subject_action": 0.35,
    "subject_place": 0.25,
}
MAX_COVERAGE = 0.5  # fraction of the video that a query's windows may cover
RATERS, BEST_RATING = 3, 4
RATER_BIAS, RATER_NOISE = 0.3, 0.45  # standard deviations, in rating steps
LOOKS_PER_CLIP = 5
# Subject sizes (fraction of the frame height) for rating 1 and for rating 4.
PLAIN_SIZE, FULL_SIZE = 0.15, 0.62
WORDING_ATTEMPTS = 60


@dataclass(frozen=True, slots=True)
class Query:
    """One annotated sentence and its topic."""

    topic: Topic
    row: dict[str, Any]


def comparable(text: str) -> str:
    """`text` normalised for comparison: case, spacing, final full stop."""
    return normalise_query(text).casefold().rstrip(".")


def shows(shot: Shot, topic: Topic) -> bool:
    """Whether the shot shows all parts of the topic."""
    return (
        shot.topic is not None
        and shot.topic.subject == topic.subject
        and topic.action in (None, shot.topic.action)
        and topic.place in (None, shot.place)
    )


def relevant_clips(plan: VideoPlan, topic: Topic, clip_len_s: float) -> list[int]:
    """Clips at least half covered by the shots that show `topic`; else the best covered one."""
    n_clips = count_clips(plan.duration_s, clip_len_s)
    covered = [0.0] * n_clips
    for shot in plan.shots:
        if not shows(shot, topic):
            continue
        start, end = shot.visible_s
        for clip in range(n_clips):
            overlap = min(end, (clip + 1) * clip_len_s) - max(start, clip * clip_len_s)
            covered[clip] += max(overlap, 0.0)
    chosen = [clip for clip, seconds in enumerate(covered) if seconds >= clip_len_s / 2 - 1e-9]
    return chosen or [max(range(n_clips), key=covered.__getitem__)]


def windows_of(clip_ids: Sequence[int], clip_len_s: float) -> list[list[float]]:
    """The runs of consecutive clips as [start, end] in seconds; whole seconds as integers."""
    windows: list[list[float]] = []
    for clip in clip_ids:
        start, end = _plain(clip * clip_len_s), _plain((clip + 1) * clip_len_s)
        if windows and windows[-1][1] == start:
            windows[-1][1] = end
        else:
            windows.append([start, end])
    return windows


def draw_queries(
    plan: VideoPlan, count: int, clip_len_s: float, taken: Collection[str]
) -> list[Query]:
    """Up to `count` queries about a video, none of them equal to a text in `taken`."""
    rng = Random(derive_seed(plan.seed, "queries"))
    queries: list[Query] = []
    for topic in _draw_topics(plan, clip_len_s, rng):
        if len(queries) == count:
            break
        text = _word(topic, taken, rng)
        if text is not None:
            row = _row(plan, topic, text, clip_len_s)
            queries.append(Query(topic, row))
    return queries


def topics_of(shots: Iterable[Shot]) -> list[Topic]:
    """All topics that the shots show, in order of appearance."""
    topics: dict[Topic, None] = {}
    for shot in shots:
        if shot.topic is not None:
            full = shot.topic
            topics[full] = None
            topics[Topic(full.subject, full.action, None)] = None
            topics[Topic(full.subject, None, full.place)] = None
    return list(topics)


def _draw_topics(plan: VideoPlan, clip_len_s: float, rng: Random) -> list[Topic]:
    """All topics in drawn order: hard ones first, new windows before already used ones."""
    left = topics_of(plan.shots)
    rng.shuffle(left)
    limit = MAX_COVERAGE * count_clips(plan.duration_s, clip_len_s)
    clips = {topic: tuple(relevant_clips(plan, topic, clip_len_s)) for topic in left}
    drawn: list[Topic] = []
    while left:
        kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
        asked = {clips[topic] for topic in drawn}

        def cost(topic: Topic, kind: Kind = kind, asked: set[Any] = asked) -> tuple[bool, ...]:
            easy = len(clips[topic]) > limit or not _has_distractor(plan, topic)
            return easy, clips[topic] in asked, topic.kind != kind

        drawn.append(min(left, key=cost))
        left.remove(drawn[-1])
    return drawn


def _has_distractor(plan: VideoPlan, topic: Topic) -> bool:
    """Whether a shot shows a part of the topic but not all of it."""
    return any(
        shot.topic is not None
        and not shows(shot, topic)
        and (
            shot.topic.subject == topic.subject
            or shot.topic.action == topic.action
            or shot.place == topic.place
        )
        for shot in plan.shots
    )


def _word(topic: Topic, taken: Collection[str], rng: Random) -> str | None:
    for _ in range(WORDING_ATTEMPTS):
        text = word_query(topic, rng)
        if comparable(text) not in taken:
            return text
    return None


def _row(plan: VideoPlan, topic: Topic, text: str, clip_len_s: float) -> dict[str, Any]:
    clip_ids = relevant_clips(plan, topic, clip_len_s)
    levels = [_level(plan, topic, clip, clip_len_s) for clip in clip_ids]
    return {
        "query": text,
        "vid": plan.vid,
        "duration": _plain(plan.duration_s),
        "relevant_windows": windows_of(clip_ids, clip_len_s),
        "relevant_clip_ids": clip_ids,
        "saliency_scores": _rate(levels, Random(derive_seed(plan.seed, "ratings", text))),
    }


def _level(plan: VideoPlan, topic: Topic, clip: int, clip_len_s: float) -> float:
    """The true rating of the clip: 0 where nothing is visible, 4 where the subject is large."""
    looks = [
        _presence(plan, topic, (clip + (look + 0.5) / LOOKS_PER_CLIP) * clip_len_s)
        for look in range(LOOKS_PER_CLIP)
    ]
    return sum(looks) / LOOKS_PER_CLIP


def _presence(plan: VideoPlan, topic: Topic, time_s: float) -> float:
    for shot in plan.shots:
        if shot.start_s <= time_s < shot.end_s and shows(shot, topic):
            pose = pose_at(shot, time_s)
            return 0.0 if pose is None else _presence_of(pose)
    return 0.0


def _presence_of(pose: Pose) -> float:
    share = (pose.size - PLAIN_SIZE) / (FULL_SIZE - PLAIN_SIZE)
    rating = 1 + (BEST_RATING - 1) * min(max(share, 0.0), 1.0)
    return rating * pose.opacity


def _rate(levels: Sequence[float], rng: Random) -> list[list[int]]:
    """Ratings of three raters per clip: rater bias plus noise, rounded to integers."""
    biases = [rng.gauss(0, RATER_BIAS) for _ in range(RATERS)]
    return [
        [_step(level + bias + rng.gauss(0, RATER_NOISE)) for bias in biases] for level in levels
    ]


def _step(value: float) -> int:
    return min(max(round(value), 0), BEST_RATING)


def _plain(value: float) -> float:
    """2.0 as 2, as in the published files; rounds off floating-point noise."""
    value = round(value, 6)
    return int(value) if value == int(value) else value
