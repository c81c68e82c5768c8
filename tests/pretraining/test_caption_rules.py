from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mrmodel.pretraining.intervid import captions
from mrmodel.pretraining.intervid.caption_rules import PASSED, RULES, caption_words
from mrmodel.pretraining.intervid.captions import Chunk, parse_chunk
from tests.pretraining.tables import Filtered, filter_table, row, settings, write_table
from tests.reporters import RecordingReporter

FILES = ("kept.parquet", "rejects.parquet", "filter.json")
VIDEOS = [f"video{number:06d}" for number in range(60)]


def outcome(**changes: Any) -> str:
    """The rule that a row fails, or ``passed``."""
    options = changes.pop("options", {})
    chunk = Chunk(1, [json.dumps(row(**changes)).encode()])
    failed = int(parse_chunk(chunk, settings(**options)).columns["failed"][0])
    return "passed" if failed == PASSED else RULES[failed]


def table(
    path: Path, rows: list[Any], leak: frozenset[str] = frozenset(), **options: Any
) -> Filtered:
    return filter_table(write_table(path / "c.jsonl", rows), leak, **options)


@pytest.mark.parametrize(
    ("caption", "rule"),
    [
        ("a brown dog runs", "passed"),
        ("a brown dog", "length"),  # 3 words
        ("a cow is on", "length"),  # 11 characters
        ("it is not so big", "passed"),
        ("so " * 41, "length"),
        ("wonderfully " * 26 + "big", "length"),  # 27 words, 315 characters
        ("a dog runs — café, naïve", "script"),
        ("a dog runs past a small café on the beach", "passed"),
        ("一只棕色的狗 在 长长的海滩上 跑步", "script"),
        ("the score is 1234567 to 7654321 now", "script"),
        ("a dog on http://dogs.example now", "script"),
        ("a dog of www.dogs running around", "script"),
        ("visit dogs.com and see the dogs", "script"),
        ("a dog by @dogs runs on the beach", "script"),
        ("a dog #beach runs on the sand", "script"),
        ("an image showing a dog on a beach", "medium"),
        ("A Screenshot Of A Dog On A Beach", "medium"),
        ("two images showing a dog on a beach", "medium"),
        ("a dog looks at a web page on a screen", "medium"),
        ("the words of a song are heard there", "medium"),
        ("a sign in korean characters on a wall", "medium"),
        ("a lesson in korean on a small stage", "passed"),
        ("a man imagines a photographer there", "passed"),
        ("a dog slides down a snowy hill", "passed"),
        ("dog dog dog dog on the wide green beach here", "repetition"),
        ("a dog and a cat meet a cow near a hen", "passed"),  # stop words may repeat
        ("in the red in the blue in the old large hall there", "repetition"),  # a pair 3 times
        ("big dogs and big dogs and big cats", "repetition"),  # 4 of 8 words are distinct
        ("a man is talking", "generic"),
        ("A man is talking.", "generic"),
    ],
)
def test_rules_about_words(caption: str, rule: str) -> None:
    assert outcome(caption=caption) == rule


@pytest.mark.parametrize("rule", ["length", "script", "medium", "repetition", "score", "interval"])
def test_every_rule_has_a_switch(rule: str) -> None:
    bad: dict[str, dict[str, Any]] = {
        "length": {"caption": "a dog"},
        "script": {"caption": "一只棕色的狗 在 长长的海滩上 跑步"},
        "medium": {"caption": "an image showing a dog on a beach"},
        "repetition": {"caption": "dog dog dog dog on the wide green beach here"},
        "score": {"UMT_Score": 0.1},
        "interval": {"end": 11.0},
    }
    limits = {"captions__min_umt_score": 0.4}
    assert outcome(**bad[rule], options=limits) == rule
    off = {**limits, f"captions__rules__{rule}": False}
    assert outcome(**bad[rule], options=off) == "passed"


def test_scores_at_the_limit_pass() -> None:
    limits = {"captions__min_umt_score": 0.4, "captions__min_aesthetic_score": 4.0}
    assert outcome(UMT_Score=0.4, Aesthetic_Score=4.0, options=limits) == "passed"
    assert outcome(UMT_Score=0.3999, Aesthetic_Score=4.0, options=limits) == "score"
    assert outcome(UMT_Score=0.4, Aesthetic_Score=3.9, options=limits) == "score"
    assert outcome(UMT_Score=-5.0) == "passed"


@pytest.mark.parametrize(
    ("seconds", "rule"),
    [(3.999, "interval"), (4.0, "passed"), (150.0, "passed"), (150.001, "interval")],
)
def test_interval_lengths(seconds: float, rule: str) -> None:
    assert outcome(start=7.0, end=7.0 + seconds) == rule


def test_word_lists_are_versioned() -> None:
    assert caption_words().version >= 1


def test_generic_counts_videos_not_rows(tmp_path: Path) -> None:
    same = [row(video=video) for video in VIDEOS[:50]]
    often = [row(VIDEOS[0], 200 * k, 200 * k + 10, "two cats sit on a roof") for k in range(60)]
    found = table(tmp_path, same + often)
    assert found.removed["generic"] == 50
    assert table(tmp_path, same[:49] + often).removed["generic"] == 0
    assert table(tmp_path, same, captions__rules__generic=False).removed["generic"] == 0


def test_generic_counts_before_score_and_interval(tmp_path: Path) -> None:
    rows = [row(video=video, end=11.0) for video in VIDEOS[:50]]
    assert table(tmp_path, rows).removed == {**dict.fromkeys(RULES, 0), "generic": 50}


def test_dedupe_keeps_the_best_of_overlapping_rows(tmp_path: Path) -> None:
    rows = [
        row(start=0, end=10, UMT_Score=0.4),
        row(start=8, end=20, UMT_Score=0.6),
        row(start=19, end=30, UMT_Score=0.5),
        row(start=30, end=40, UMT_Score=0.3),  # touches the third, which is gone
        row(start=8, end=20, caption="another dog runs on a beach"),
        row(VIDEOS[0], start=8, end=20),
    ]
    found = table(tmp_path, rows, captions__max_per_video=99)
    assert found.removed["dedupe"] == 2
    assert sorted(found.kept["line"]) == [2, 4, 5, 6]
    off = table(tmp_path, rows, captions__rules__dedupe=False, captions__max_per_video=99)
    assert off.removed["dedupe"] == 0
    assert len(off.kept) == 6


def test_cap_keeps_the_best_rows_of_a_video(tmp_path: Path) -> None:
    scores = [0.5, 0.6, 0.5, 0.4, 0.5]
    rows = [
        row(start=20 * k, end=20 * k + 10, caption=f"dog {name} runs on the beach", UMT_Score=score)
        for k, (name, score) in enumerate(zip("abcde", scores, strict=True))
    ]
    found = table(tmp_path, rows)
    assert sorted(found.kept["line"]) == [1, 2, 3]
    assert found.removed["cap"] == 2
    assert len(table(tmp_path, rows, captions__rules__cap=False).kept) == 5


def test_rows_removed_earlier_do_not_use_up_the_cap(tmp_path: Path) -> None:
    rows = [row(start=10 * k, end=10 * k + 1, UMT_Score=0.9) for k in range(3)]
    assert len(table(tmp_path, [*rows, row()]).kept) == 1


def test_leak_removes_evaluation_videos(tmp_path: Path) -> None:
    rows = [row(VIDEOS[0]), row(VIDEOS[1])]
    found = table(tmp_path, rows, leak=frozenset({VIDEOS[0]}))
    assert found.removed["leak"] == 1
    assert found.kept["line"].tolist() == [2]
    off = table(tmp_path, rows, leak=frozenset({VIDEOS[0]}), captions__rules__leak=False)
    assert len(off.kept) == 2


def test_equal_rows_give_one(tmp_path: Path) -> None:
    assert table(tmp_path, [row()] * 3).removed["dedupe"] == 2
    found = table(tmp_path, [row()] * 3, captions__rules__dedupe=False)
    counts = {"captions": 1, "duplicate_row": 2, "qid_collision": 0}
    assert (found.record["kept"], found.kept["line"].tolist()) == (counts, [1])
    assert [item["reason"] for item in found.rejects] == ["duplicate_row"] * 2


def test_rows_that_share_a_hash_give_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "_QID_SHIFT", 63)
    rows = [row(video, caption=f"a dog runs in park number {video[-2:]}") for video in VIDEOS[:9]]
    found = table(tmp_path, rows)
    assert 1 <= len(found.kept) <= 2
    assert found.record["kept"]["qid_collision"] == 9 - len(found.kept)
    assert {item["reason"] for item in found.rejects} == {"qid_collision"}


def many_rows(count: int) -> list[Any]:
    random = Random(5)
    names = ["dog", "cat", "cow", "hen", "fox"]
    rows: list[Any] = []
    for number in range(count):
        start = random.randrange(0, 100)
        caption = f"a {random.choice(names)} and a {random.choice(names)} run in a park"
        caption = random.choice([caption] * 8 + ["an image", "一只狗 在 长长的 海滩上跑步"])
        length = random.choice([2, 6, 10, 160])
        score = random.choice([0.3, 0.4, 0.5])
        rows.append(row(random.choice(VIDEOS), start, start + length, caption, UMT_Score=score))
        if number % 17 == 0:
            rows.append(random.choice(["garbage", "", "null", row(end=0)]))
    return rows


def test_result_does_not_depend_on_chunks(tmp_path: Path) -> None:
    path = write_table(tmp_path / "c.jsonl", many_rows(300))
    one = filter_table(path, VIDEOS[:5], captions__max_bad_row_share=1.0)
    files = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    for chunk_rows in (7, 40, 1000):
        filter_table(path, VIDEOS[:5], chunk_rows=chunk_rows, captions__max_bad_row_share=1.0)
        assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == files
    assert len(one.kept) > 20
    assert one.record["rows"]["bad"]


def test_every_row_is_kept_or_has_a_reason(tmp_path: Path) -> None:
    found = table(tmp_path, many_rows(300), captions__max_bad_row_share=1.0)
    lines = [item["line"] for item in found.rejects]
    assert lines == sorted(lines)
    assert not set(lines) & set(found.kept["line"])
    assert len(lines) + len(found.kept) == found.record["rows"]["read"]
    reasons = Counter(item["reason"] for item in found.rejects)
    counted = found.record["rows"]["bad"] | {n: k for n, k in found.removed.items() if k}
    assert reasons == counted
    malformed = {item["reason"] for item in found.rejects if item["detail"] is not None}
    assert malformed == set(found.record["rows"]["bad"])


def test_kept_texts_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = many_rows(300)
    first = table(tmp_path, rows, captions__max_bad_row_share=1.0)
    Random(1).shuffle(rows)
    second = table(tmp_path, rows, captions__max_bad_row_share=1.0)
    columns = ["qid", "start_ms", "end_ms", "umt", "table_end_ms", "video_id", "caption"]
    assert first.kept[columns].equals(second.kept[columns])
    assert first.kept["qid"].is_monotonic_increasing
    assert first.removed == second.removed


def test_progress_reaches_the_size_of_the_file(tmp_path: Path) -> None:
    path = write_table(tmp_path / "c.jsonl", many_rows(50))
    reporter = RecordingReporter()
    filter_table(path, reporter=reporter, chunk_rows=10, captions__max_bad_row_share=1.0)
    assert reporter.events[0] == ("read captions", path.stat().st_size, {})
    ends = [name for name, _, _ in reporter.events].index("finish")
    advanced = [steps for name, steps, _ in reporter.events[:ends] if name == "advance"]
    assert sum(advanced) == path.stat().st_size


def test_empty_table(tmp_path: Path) -> None:
    found = table(tmp_path, [])
    assert found.record["rows"] == {"read": 0, "bad": {}, "normalised": 0}
    assert (len(found.kept), found.rejects) == (0, [])
