"""The caption table of the pretraining videos, with the defects of a mined one.

InternVid has one caption per detected shot, with inexact boundaries. So a row here describes one
shot although the same content may recur, its interval is off by a second or two, and a fraction of
the rows is useless. The InterVid-MR stage has to filter them and to find the true moments.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from mrmodel.files import derive_seed
from mrmodel.synthetic.annotations import shows
from mrmodel.synthetic.script import Shot, VideoPlan
from mrmodel.synthetic.sprites import subjects
from mrmodel.synthetic.vocabulary import (
    ACTIONS,
    PLACES,
    Kind,
    Topic,
    held_out_subjects,
    is_held_out,
    word_caption,
)

USELESS_SHARE = 0.12
KIND_WEIGHTS: dict[Kind, float] = {
    "subject_action_place": 0.8,
    "subject_action": 0.1,
    "subject_place": 0.1,
}
SHORT_SHARE, LONG_SHARE = 0.08, 0.12  # fractions of intervals that are far too short, far too long
JITTER_S = 0.5  # standard deviation at either end of the others
MIN_INTERVAL_S = 0.6
# UMT score of a caption with a wrong interval, gain of a perfect interval, noise, and range.
UMT_BASE, UMT_GAIN, UMT_NOISE, UMT_RANGE = 0.36, 0.15, 0.03, (0.09, 0.6)
AESTHETIC, AESTHETIC_NOISE, AESTHETIC_RANGE = 4.6, 0.9, (-0.89, 9.02)

MEDIUM_CAPTIONS = (
    "a screenshot of a website with a search bar",
    "an image showing the text for a video game",
    "a picture of a logo on a white background",
    "the words thank you for watching on a blue screen",
    "a man is talking",
    "subscribe at https://www.example.com for more",
    "follow us @funny_clips #shorts #funny",
    "a video of a tutorial in chinese writing",
)


def draw_captions(plan: VideoPlan, count: int) -> list[dict[str, Any]]:
    """The `count` rows about one pretraining video, by start time."""
    rng = Random(derive_seed(plan.seed, "captions"))
    shots = [shot for shot in plan.shots if shot.topic is not None]
    rows: list[dict[str, Any]] = []
    order: list[Shot] = []
    while len(rows) < count:
        if rows and rng.random() < USELESS_SHARE:
            rows.append(rng.choice(USELESS)(plan, rows, rng))
            continue
        # Every shot once in drawn order, then every shot again, reworded.
        order = order or rng.sample(shots, len(shots))
        rows.append(_describe(plan, order.pop(), rng))
    return sorted(rows, key=lambda row: (row["Start_timestamp"], row["End_timestamp"]))


def timestamp(seconds: float) -> str:
    """Seconds as HH:MM:SS.mmm."""
    millis = round(seconds * 1000)
    minutes, rest = divmod(millis, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _describe(plan: VideoPlan, shot: Shot, rng: Random) -> dict[str, Any]:
    topic = _part_of(shot, rng)
    interval = _loosen(shot.visible_s, plan.duration_s, rng)
    fit = _iou(interval, shot.visible_s)
    return _row(plan, interval, word_caption(topic, rng), UMT_BASE + UMT_GAIN * fit, rng)


def _part_of(shot: Shot, rng: Random) -> Topic:
    """The parts of the shot that the caption names."""
    if shot.topic is None:
        raise ValueError("an empty shot has no caption")
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    action = None if kind == "subject_place" else shot.topic.action
    place = None if kind == "subject_action" else shot.topic.place
    return Topic(shot.topic.subject, action, place)


def _loosen(interval: tuple[float, float], duration_s: float, rng: Random) -> tuple[float, float]:
    """The interval with the errors of mined data: slightly off, much too short or too long."""
    start, end = interval
    draw = rng.random()
    if draw < SHORT_SHARE:
        length = (end - start) * rng.uniform(0.35, 0.7)
        start += rng.random() * (end - start - length)
        end = start + length
    elif draw < SHORT_SHARE + LONG_SHARE:
        start, end = start - rng.uniform(0, 3), end + rng.uniform(1, 4)
    else:
        start, end = start + rng.gauss(0, JITTER_S), end + rng.gauss(0, JITTER_S)
    return _clamp(start, end, duration_s)


def _clamp(start: float, end: float, duration_s: float) -> tuple[float, float]:
    start = min(max(start, 0.0), duration_s - MIN_INTERVAL_S)
    return start, min(max(end, start + MIN_INTERVAL_S), duration_s)


def _any_interval(plan: VideoPlan, rng: Random, longest_s: float) -> tuple[float, float]:
    start = rng.uniform(0, plan.duration_s)
    return _clamp(start, start + rng.uniform(MIN_INTERVAL_S, longest_s), plan.duration_s)


def _about_the_medium(plan: VideoPlan, _: list[dict[str, Any]], rng: Random) -> dict[str, Any]:
    interval = _any_interval(plan, rng, 10)
    return _row(plan, interval, rng.choice(MEDIUM_CAPTIONS), UMT_BASE, rng)


def _repetitive(plan: VideoPlan, _: list[dict[str, Any]], rng: Random) -> dict[str, Any]:
    name = rng.choice(plan.shots[0].topic.subject.split() if plan.shots[0].topic else ["thing"])
    caption = " and ".join([f"a {name}"] * rng.randint(4, 6))
    return _row(plan, _any_interval(plan, rng, 10), caption, UMT_BASE, rng)


def _too_short(plan: VideoPlan, _: list[dict[str, Any]], rng: Random) -> dict[str, Any]:
    caption = rng.choice(["something", "a thing", "a colorful scene", "nice view"])
    return _row(plan, _any_interval(plan, rng, 10), caption, UMT_BASE, rng)


def _duplicate(plan: VideoPlan, rows: list[dict[str, Any]], rng: Random) -> dict[str, Any]:
    """A copy of a row with a slightly worse score."""
    row = rng.choice(rows)
    return {**row, "UMT_Score": round(max(row["UMT_Score"] - 0.01, UMT_RANGE[0]), 4)}


def _mismatched(plan: VideoPlan, _: list[dict[str, Any]], rng: Random) -> dict[str, Any]:
    """A caption about something that the video does not show, with a low UMT score."""
    names = [subject.name for subject in subjects() if subject.name not in held_out_subjects()]
    while True:
        topic = Topic(rng.choice(names), rng.choice(list(ACTIONS)), rng.choice(list(PLACES)))
        if not is_held_out(topic) and not any(shows(shot, topic) for shot in plan.shots):
            break
    return _row(plan, _any_interval(plan, rng, 12), word_caption(topic, rng), 0.22, rng)


def _glimpse(plan: VideoPlan, _: list[dict[str, Any]], rng: Random) -> dict[str, Any]:
    """A correct caption on an interval of a second or two."""
    shot = rng.choice([shot for shot in plan.shots if shot.topic is not None])
    start, end = shot.visible_s
    begin = rng.uniform(start, end - 1)
    interval = _clamp(begin, begin + rng.uniform(MIN_INTERVAL_S, 3), plan.duration_s)
    return _row(plan, interval, word_caption(_part_of(shot, rng), rng), UMT_BASE, rng)


Maker = Callable[[VideoPlan, list[dict[str, Any]], Random], dict[str, Any]]
USELESS: tuple[Maker, ...] = (
    _about_the_medium,
    _repetitive,
    _too_short,
    _duplicate,
    _mismatched,
    _glimpse,
)


def _row(
    plan: VideoPlan, interval: tuple[float, float], caption: str, umt: float, rng: Random
) -> dict[str, Any]:
    return {
        "YoutubeID": plan.vid,
        "Start_timestamp": timestamp(interval[0]),
        "End_timestamp": timestamp(interval[1]),
        "Caption": caption,
        "UMT_Score": _score(rng.gauss(umt, UMT_NOISE), UMT_RANGE),
        "Aesthetic_Score": _score(rng.gauss(AESTHETIC, AESTHETIC_NOISE), AESTHETIC_RANGE),
    }


def _score(value: float, limits: tuple[float, float]) -> float:
    return round(min(max(value, limits[0]), limits[1]), 4)


def _iou(first: tuple[float, float], second: tuple[float, float]) -> float:
    intersection = max(min(first[1], second[1]) - max(first[0], second[0]), 0.0)
    union = (first[1] - first[0]) + (second[1] - second[0]) - intersection
    return intersection / union
