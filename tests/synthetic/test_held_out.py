"""Nothing that val and test keep for themselves is shown or named in training."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

from mrmodel.synthetic.annotations import comparable
from mrmodel.synthetic.captions import draw_captions
from mrmodel.synthetic.render import annotate_corpus, plan_corpus
from mrmodel.synthetic.script import VideoPlan
from mrmodel.synthetic.sprites import subjects
from mrmodel.synthetic.vocabulary import (
    ACTIONS,
    PLACES,
    Topic,
    held_out_partners,
    held_out_subjects,
    is_held_out,
)
from tests.synthetic.conftest import settings_of


@cache
def corpus() -> tuple[dict[str, list[VideoPlan]], list[dict[str, Any]], dict[str, list[Any]]]:
    """The annotations of the default size."""
    settings = settings_of(
        seed=2026, duration_s=60, videos={"pretrain": 100, "train": 90, "val": 60, "test": 60}
    )
    plans = plan_corpus(settings)
    captions = [row for plan in plans["pretrain"] for row in draw_captions(plan, 10)]
    return plans, captions, annotate_corpus(plans, captions, 4, 2.0)


def training_texts() -> list[str]:
    _, captions, queries = corpus()
    return [row["Caption"] for row in captions] + [query.row["query"] for query in queries["train"]]


def named(text: str) -> tuple[str | None, str | None, str | None]:
    """Subject, action and place that a sentence names, read from its words alone."""
    phrases = {subject.phrase: subject.name for subject in subjects()}
    verbs = {form: name for name, forms in ACTIONS.items() for pair in forms for form in pair}
    places = {form: name for name, forms in PLACES.items() for form in forms}
    return _longest(text, phrases), _longest(text, verbs), _longest(text, places)


def _longest(text: str, table: dict[str, str]) -> str | None:
    found = [
        form
        for form in table
        if re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text, flags=re.IGNORECASE)
    ]
    return table[max(found, key=len)] if found else None


def test_the_reader_of_this_test_reads_what_was_written() -> None:
    _, _, queries = corpus()
    for of_split in queries.values():
        for query in of_split:
            topic = query.topic
            assert named(query.row["query"]) == (topic.subject, topic.action, topic.place)


def test_no_training_text_names_a_held_out_subject_or_combination() -> None:
    combined = 0
    for text in training_texts():
        subject, action, place = named(text)
        if subject is None:
            continue
        assert subject not in held_out_subjects(), text
        assert not is_held_out(Topic(subject, action, place)), text
        combined += 1
    assert combined > 1200


def test_no_training_video_shows_one() -> None:
    plans, _, _ = corpus()
    for plan in plans["pretrain"] + plans["train"]:
        for shot in plan.shots:
            if shot.topic:
                assert shot.topic.subject not in held_out_subjects()
                assert not is_held_out(shot.topic)


@pytest.mark.parametrize("split", ["val", "test"])
def test_val_and_test_ask_for_both(split: str) -> None:
    _, _, queries = corpus()
    topics = [query.topic for query in queries[split]]
    assert sum(topic.subject in held_out_subjects() for topic in topics) > len(topics) / 5
    assert sum(is_held_out(topic) for topic in topics) > len(topics) / 10


def test_no_sentence_of_val_or_test_was_read_before() -> None:
    _, _, queries = corpus()
    training = {comparable(text) for text in training_texts()}
    val = {comparable(query.row["query"]) for query in queries["val"]}
    test = {comparable(query.row["query"]) for query in queries["test"]}
    assert not val & training
    assert not test & (training | val)


def test_every_subject_loses_one_action_and_one_place() -> None:
    pairs = [held_out_partners(subject.name) for subject in subjects()]
    assert {action for action, _ in pairs} == set(ACTIONS)
    assert {place for _, place in pairs} == set(PLACES)
    assert len(held_out_subjects()) == 21
