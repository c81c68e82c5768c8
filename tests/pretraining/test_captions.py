from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mrmodel.features.keys import normalise_query, text_key
from mrmodel.pretraining.intervid.caption_rules import PASSED, normalise_caption
from mrmodel.pretraining.intervid.captions import (
    Chunk,
    ParsedChunk,
    parse_chunk,
)
from tests.pretraining.tables import row, settings, timestamp

GOOD = json.dumps(row())


def parse(*lines: object) -> ParsedChunk:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return parse_chunk(Chunk(1, [f"{text}\n".encode() for text in texts]), settings())


def reasons(*lines: object) -> list[str]:
    return [bad.reason for bad in parse(*lines).bad_rows]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("garbage", "not_json"),
        ("{" * 3, "not_json"),
        ("[" * 100_000, "not_json"),
        ("null", "not_an_object"),
        ("[1]", "not_an_object"),
        ('"text"', "not_an_object"),
        ({key: value for key, value in row().items() if key != "Caption"}, "missing_column"),
        ({**row(), "YoutubeID": 12345678901}, "not_text"),
        ({**row(), "Caption": None}, "not_text"),
        (GOOD.replace("a brown", "\\ud800 brown"), "not_text"),
        (row(video="short"), "bad_video_id"),
        (row(video=""), "bad_video_id"),
        (row(caption=""), "empty_caption"),
        (row(caption=' "" '), "empty_caption"),
        (row(UMT_Score=float("nan")), "bad_score"),
        (row(UMT_Score=None), "bad_score"),
        (row(UMT_Score="0.5"), "bad_score"),
        (row(UMT_Score=True), "bad_score"),
        (row(UMT_Score=10**400), "bad_score"),
        (row(Aesthetic_Score=float("inf")), "bad_score"),
        (row(start=20, end=20), "empty_interval"),
        (row(start=20, end=10), "empty_interval"),
        (row(Start_timestamp="0:00:10.000"), "bad_time"),
        (row(Start_timestamp="00:00:10,000"), "bad_time"),
        (row(Start_timestamp="00:60:10.000"), "bad_time"),
        (row(End_timestamp="00:00:60.000"), "bad_time"),
        (row(End_timestamp="00:00:2x.000"), "bad_time"),
        (row(End_timestamp="00:00:20.00é"), "bad_time"),
        (row(End_timestamp=""), "bad_time"),
    ],
)
def test_bad_row_is_rejected_with_its_line_and_reason(line: object, reason: str) -> None:
    parsed = parse(GOOD, line, GOOD)
    assert [(bad.line, bad.reason) for bad in parsed.bad_rows] == [(2, reason)]
    assert parsed.bad_rows[0].detail
    assert parsed.columns["line"].tolist() == [1, 3]


def test_bytes_that_are_no_utf8_are_rejected() -> None:
    parsed = parse_chunk(Chunk(1, [GOOD.encode(), b'{"Caption": "\xff"}\n']), settings())
    assert [bad.reason for bad in parsed.bad_rows] == ["not_json"]
    assert len(parsed.columns["line"]) == 1


def test_empty_lines_keep_the_line_numbers() -> None:
    assert parse("", GOOD, "  ", GOOD).columns["line"].tolist() == [2, 4]


def test_two_objects_on_one_line_do_not_shift_the_others() -> None:
    parsed = parse(f"{GOOD},{GOOD}", GOOD, GOOD)
    assert [bad.line for bad in parsed.bad_rows] == [1]
    assert parsed.columns["line"].tolist() == [2, 3]


def test_id_of_any_length_where_the_settings_allow() -> None:
    chunk = Chunk(1, [json.dumps(row(video="my video")).encode()])
    assert len(parse_chunk(chunk, settings(captions__video_id_length=None)).columns["line"]) == 1


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 359_999_998), min_size=1))
def test_times_are_exact_milliseconds(times: list[int]) -> None:
    spans = [(timestamp(millis / 1000), timestamp((millis + 1) / 1000)) for millis in times]
    columns = parse(*(row(Start_timestamp=a, End_timestamp=b) for a, b in spans)).columns
    assert columns["start_ms"].tolist() == times
    assert columns["end_ms"].tolist() == [millis + 1 for millis in times]


def test_columns_of_a_row() -> None:
    parsed = parse(row(caption='  "a  brown dog\nruns on the beach" '))
    only = {name: values[0] for name, values in parsed.columns.items()}
    clean = parse(row(caption="a brown dog runs on the beach"))
    assert only["qid"] == clean.columns["qid"][0]
    assert only["umt"] == 0.5
    assert only["failed"] == PASSED
    assert only["changed"]
    assert only["text"] == "a brown dog runs on the beach"
    assert not parse(row()).columns["changed"].any()


def test_query_id_is_stable_and_exact_in_json() -> None:
    # The number is part of published files: it must not change.
    (of_a_dog,) = parse(row(caption="a dog")).columns["qid"]
    assert of_a_dog == 4853465171010846
    ids = parse(*(row(caption=str(number)) for number in range(2000))).columns["qid"].tolist()
    assert len(set(ids)) == 2000
    assert max(ids) < 2**53
    assert np.mean(ids) == pytest.approx(2**52, rel=0.05)


@given(st.text())
def test_normalised_caption_has_one_text_key(caption: str) -> None:
    text = normalise_caption(caption)
    assert normalise_query(text) == text
    assert normalise_caption(text) == text
    assert text_key(text) == text_key(f" {text}\n")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ('"a dog"', "a dog"),
        ("“a dog”", "a dog"),
        ("'\"a dog\"'", "a dog"),
        ('a "big" dog', 'a "big" dog'),
        ("a dog's", "a dog's"),
        ("ﬁsh ①", "fish 1"),
        ('"', ""),
        ("\u3000 a\u00a0dog ", "a dog"),
    ],
)
def test_normalise_caption(raw: str, text: str) -> None:
    assert normalise_caption(raw) == text
