"""Vocabulary of the sample corpus, and its parts held out from training.

Text only: the motion of actions is in `motion`, the look of places in `scenes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

from mrmodel.synthetic.sprites import Subject, subjects

# Wordings of an action: (finite, gerund), as in "a pig spins around", "a pig spinning around".
ACTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (
        ("moves to the left", "moving to the left"),
        ("glides leftwards", "gliding leftwards"),
        ("travels from right to left", "travelling from right to left"),
    ),
    "right": (
        ("moves to the right", "moving to the right"),
        ("glides rightwards", "gliding rightwards"),
        ("travels from left to right", "travelling from left to right"),
    ),
    "bounce": (
        ("bounces up and down", "bouncing up and down"),
        ("hops on the spot", "hopping on the spot"),
        ("jumps again and again", "jumping again and again"),
    ),
    "spin": (
        ("spins around", "spinning around"),
        ("rotates in circles", "rotating in circles"),
        ("turns round and round", "turning round and round"),
    ),
    "near": (
        ("comes closer", "coming closer"),
        ("approaches the camera", "approaching the camera"),
        ("gets bigger and bigger", "getting bigger and bigger"),
    ),
    "far": (
        ("moves away", "moving away"),
        ("recedes into the distance", "receding into the distance"),
        ("gets smaller and smaller", "getting smaller and smaller"),
    ),
    "still": (
        ("stays still", "staying still"),
        ("does not move", "not moving"),
        ("rests motionless", "resting motionless"),
    ),
    "shake": (
        ("shakes quickly", "shaking quickly"),
        ("trembles", "trembling"),
        ("wobbles from side to side", "wobbling from side to side"),
    ),
}

PLACES: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "by the seaside", "on a sandy shore"),
    "forest": ("in the forest", "among the trees", "in the woods"),
    "desert": ("in the desert", "among sand dunes", "on hot desert sand"),
    "snow": ("in the snow", "on a snowy field", "in a white winter landscape"),
    "city": ("in the city at night", "on a street at night", "in front of city lights"),
    "underwater": ("under water", "at the bottom of the sea", "beneath the waves"),
    "space": ("in outer space", "among the planets", "in deep space"),
    "room": ("in a living room", "inside a room", "on the carpet at home"),
}

Kind = Literal["subject_action_place", "subject_action", "subject_place"]

# {s} subject, {f} finite verb phrase, {g} gerund, {p} place.
QUERY_TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "subject_action_place": (
        "{s} {f} {p}",
        "{p}, {s} {f}",
        "{s} is {g} {p}",
        "the moment when {s} {f} {p}",
    ),
    "subject_action": (
        "{s} {f}",
        "{s} is {g}",
        "we see {s} {g}",
        "there is {s} that {f}",
    ),
    "subject_place": (
        "{s} {p}",
        "{p} there is {s}",
        "{s} can be seen {p}",
        "a view of {s} {p}",
    ),
}
CAPTION_TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "subject_action_place": (
        "{s} {g} {p}",
        "{s} is seen {g} {p}",
        "a shot of {s} {g} {p}",
    ),
    "subject_action": (
        "{s} is seen {g}",
        "a shot of {s} {g}",
        "it looks like {s} is {g}",
    ),
    "subject_place": (
        "a shot of {s} {p}",
        "{s} is {p}",
        "there is {s} {p}",
    ),
}

# Every seventh subject is held out: shown in val and test only.
HELD_OUT_STRIDE, HELD_OUT_OFFSET = 7, 3


@dataclass(frozen=True, slots=True)
class Topic:
    """The content of a sentence; `action` or `place` is None if not named."""

    subject: str
    action: str | None
    place: str | None

    @property
    def kind(self) -> Kind:
        """Which parts are named."""
        if self.action is None:
            return "subject_place"
        return "subject_action" if self.place is None else "subject_action_place"


@cache
def subject_of(name: str) -> Subject:
    """The subject called `name`."""
    return next(subject for subject in subjects() if subject.name == name)


@cache
def held_out_subjects() -> frozenset[str]:
    """Names of the subjects that only appear in val and test videos."""
    chosen = subjects()[HELD_OUT_OFFSET::HELD_OUT_STRIDE]
    return frozenset(subject.name for subject in chosen)


@cache
def held_out_partners(subject: str) -> tuple[str, str]:
    """The one action and the one place that training never combines with `subject`."""
    index = subjects().index(subject_of(subject))
    actions, places = list(ACTIONS), list(PLACES)
    # Different odd steps cycle through all eight of each, so that the pairs are spread evenly.
    return actions[(5 * index + 1) % len(actions)], places[(3 * index + 2) % len(places)]


def is_held_out(topic: Topic) -> bool:
    """Whether this combination (apart from subjects) is reserved for val and test."""
    action, place = held_out_partners(topic.subject)
    return topic.action == action or topic.place == place


def word_query(topic: Topic, rng: Random) -> str:
    """A user-like sentence: one of 4 templates, one of 3 wordings of each part."""
    return _capitalised(_fill(QUERY_TEMPLATES[topic.kind], topic, rng))


def word_caption(topic: Topic, rng: Random) -> str:
    """A sentence in the style of an automatic captioner, without capitals."""
    return _fill(CAPTION_TEMPLATES[topic.kind], topic, rng).lower()


def _fill(templates: tuple[str, ...], topic: Topic, rng: Random) -> str:
    finite, gerund = rng.choice(ACTIONS[topic.action or "still"])
    place = rng.choice(PLACES[topic.place or "beach"])
    phrase = subject_of(topic.subject).phrase
    return rng.choice(templates).format(s=phrase, f=finite, g=gerund, p=place)


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
