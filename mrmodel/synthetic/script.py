"""The script of one video: content, times and transitions of its shots.

A video has 3 subjects, 3 actions and 2 places, recombined shot by shot, so that every query has
distractors that match a part of it. Boundaries are hard to find by similarity alone: the next shot
often keeps the subject and changes only its action or place, shots cross-fade, and a subject may
enter its shot late or leave early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal

from mrmodel.data.ingest.summary import Split
from mrmodel.files import derive_seed
from mrmodel.synthetic.sprites import Subject, subjects
from mrmodel.synthetic.vocabulary import ACTIONS, PLACES, Topic, held_out_subjects, is_held_out

Entrance = Literal["cut", "fade", "rise"]

SUBJECTS_PER_VIDEO, ACTIONS_PER_VIDEO, PLACES_PER_VIDEO = 3, 3, 2
SHOT_S = (4.0, 12.0)
EMPTY_SHARE = 0.2  # of eligible shots: not the first, not two in a row; 13 % of all
SAME_SUBJECT_SHARE = 0.5  # of shot changes: the subject stays, its action or place changes
LATE_SHARE, EARLY_SHARE = 0.35, 0.2  # of shots: the subject enters late, leaves early
MIN_VISIBLE_S = 3.0
ENTRANCE_S = 0.8
CROSSFADE_SHARE, CROSSFADE_S = 0.6, (0.8, 2.0)
SIZE = (0.42, 0.72)  # longer side of the subject, as a fraction of the frame's height
MAX_DRIFT = 0.08  # fraction of the frame, in each direction, during a shot


@dataclass(frozen=True, slots=True)
class Shot:
    """The part of a video between two cuts; times are seconds of the video.

    Attributes:
        start_s, end_s: the cuts, or the middles of the cross-fades.
        topic: subject, action and place; None where the place is empty.
        shown_s: start and end of the subject's presence, entrance and exit included.
        entrance, exit: how the subject enters and exits, "cut" = with the shot.
        position: centre of the subject as fractions of frame width and height.
        size: longer side of the subject as a fraction of the frame's height.
        pace: speed of the action, 0..1.
        drift: camera motion during the shot, as fractions of the frame.
        crossfade_s: length of the cross-fade from the previous shot; 0 is a hard cut.
    """

    start_s: float
    end_s: float
    place: str
    topic: Topic | None
    shown_s: tuple[float, float]
    entrance: Entrance
    exit: Entrance
    position: tuple[float, float]
    size: float
    pace: float
    drift: tuple[float, float]
    crossfade_s: float

    @property
    def visible_s(self) -> tuple[float, float]:
        """Start and end of the time in which the subject counts as visible."""
        start, end = self.shown_s
        start += ENTRANCE_S / 2 if self.entrance != "cut" else 0.0
        end -= ENTRANCE_S / 2 if self.exit != "cut" else 0.0
        return start, end


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """Everything that determines the pixels of one video."""

    vid: str
    split: Split
    seed: int
    duration_s: float
    shots: tuple[Shot, ...]


def plan_video(vid: str, split: Split, seed: int, duration_s: float) -> VideoPlan:
    """Draw the script of the video `vid`; it depends on the arguments alone."""
    video_seed = derive_seed(seed, "video", vid)
    rng = Random(video_seed)
    combinations = _draw_combinations(split, rng)
    edges = _draw_edges(duration_s, rng)
    shots: list[Shot] = []
    for start, end in pairwise(edges):
        place, topic = _next_content(shots, combinations, rng)
        shots.append(_draw_shot((start, end), place, topic, first=not shots, rng=rng))
    return VideoPlan(vid, split, video_seed, duration_s, tuple(shots))


def _draw_combinations(split: Split, rng: Random) -> list[tuple[str, Topic]]:
    """Every (place, topic) that the video may show; no held-out ones in training videos."""
    names = _draw_subjects(split, rng)
    actions = rng.sample(list(ACTIONS), ACTIONS_PER_VIDEO)
    places = rng.sample(list(PLACES), PLACES_PER_VIDEO)
    combinations = [(p, Topic(s, a, p)) for s in names for a in actions for p in places]
    if split in ("val", "test"):
        return combinations
    return [(place, topic) for place, topic in combinations if not is_held_out(topic)]


def _draw_subjects(split: Split, rng: Random) -> list[str]:
    """Three subjects; in val and test one of them is held out."""
    held_out = held_out_subjects()
    seen = [subject for subject in subjects() if subject.name not in held_out]
    unseen = [subject for subject in subjects() if subject.name in held_out]
    chosen: list[Subject] = [rng.choice(unseen)] if split in ("val", "test") else []
    while len(chosen) < SUBJECTS_PER_VIDEO:
        subject = rng.choice(seen)
        # "a car" and "a police car" in one video would make the ground truth ambiguous.
        if not any(_share_a_word(subject, other) for other in chosen):
            chosen.append(subject)
    return [subject.name for subject in chosen]


def _share_a_word(first: Subject, second: Subject) -> bool:
    return bool(set(first.name.split()) & set(second.name.split()))


def _draw_edges(duration_s: float, rng: Random) -> list[float]:
    """Cuts from 0 to the end, in tenths of a second; the last shot may be slightly longer."""
    shortest, longest = SHOT_S
    edges = [0.0]
    while duration_s - edges[-1] > longest + 1:
        step = rng.uniform(shortest, min(longest, duration_s - edges[-1] - shortest))
        edges.append(round(edges[-1] + step, 1))
    if duration_s - edges[-1] >= 2 * shortest:
        edges.append(round(rng.uniform(edges[-1] + shortest, duration_s - shortest), 1))
    return [*edges, float(duration_s)]


def _next_content(
    shots: Sequence[Shot], combinations: list[tuple[str, Topic]], rng: Random
) -> tuple[str, Topic | None]:
    """Place and topic of the next shot; the first is never empty, successive ones never equal."""
    if shots and shots[-1].topic is not None and rng.random() < EMPTY_SHARE:
        return rng.choice(combinations)[0], None
    previous = next((shot.topic for shot in reversed(shots) if shot.topic is not None), None)
    choices = [choice for choice in combinations if choice[1] != previous]
    if previous is not None:
        stays = rng.random() < SAME_SUBJECT_SHARE
        alike = [choice for choice in choices if (choice[1].subject == previous.subject) == stays]
        choices = alike or choices
    return rng.choice(choices)


def _draw_shot(
    times: tuple[float, float], place: str, topic: Topic | None, *, first: bool, rng: Random
) -> Shot:
    start, end = times
    shown, entrance, leaving = _draw_presence(times, rng)
    crossfade = rng.uniform(*CROSSFADE_S) if rng.random() < CROSSFADE_SHARE else 0.0
    return Shot(
        start_s=start,
        end_s=end,
        place=place,
        topic=topic,
        shown_s=shown,
        entrance=entrance,
        exit=leaving,
        position=(rng.uniform(0.32, 0.68), rng.uniform(0.48, 0.6)),
        size=rng.uniform(*SIZE),
        pace=rng.random(),
        drift=(rng.uniform(-MAX_DRIFT, MAX_DRIFT), rng.uniform(-MAX_DRIFT, MAX_DRIFT) / 2),
        crossfade_s=0.0 if first else round(crossfade, 2),
    )


def _draw_presence(
    times: tuple[float, float], rng: Random
) -> tuple[tuple[float, float], Entrance, Entrance]:
    """When the subject is present: it may enter late and leave early if enough time remains."""
    start, end = times
    entrance: Entrance = "cut"
    leaving: Entrance = "cut"
    # ENTRANCE_S counts half at either end, see `Shot.visible_s`.
    spare = end - start - MIN_VISIBLE_S - ENTRANCE_S
    late, early = rng.random() < LATE_SHARE, rng.random() < EARLY_SHARE
    shares = rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.8)
    kinds: tuple[Entrance, Entrance] = ("fade", "rise")
    if late and spare > 1:
        start, entrance = round(start + shares[0] * spare, 1), rng.choice(kinds)
        spare = end - start - MIN_VISIBLE_S - ENTRANCE_S
    if early and spare > 1:
        end, leaving = round(end - shares[1] * spare, 1), rng.choice(kinds)
    return (start, end), entrance, leaving
