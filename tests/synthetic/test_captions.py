from __future__ import annotations

import re
from statistics import fmean
from typing import Any

from mrmodel.synthetic.captions import MEDIUM_CAPTIONS, draw_captions, timestamp
from mrmodel.synthetic.render import plan_corpus
from mrmodel.synthetic.script import VideoPlan
from tests.synthetic.conftest import settings_of


def table(videos: int = 60) -> list[tuple[VideoPlan, dict[str, Any]]]:
    settings = settings_of(
        duration_s=60, videos={"pretrain": videos, "train": 1, "val": 1, "test": 1}
    )
    plans = plan_corpus(settings)["pretrain"]
    return [(plan, row) for plan in plans for row in draw_captions(plan, 10)]


def seconds(text: str) -> float:
    hours, minutes, rest = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def interval(row: dict[str, Any]) -> tuple[float, float]:
    return seconds(row["Start_timestamp"]), seconds(row["End_timestamp"])


def best_iou(plan: VideoPlan, row: dict[str, Any]) -> float:
    start, end = interval(row)
    ious = []
    for shot in plan.shots:
        if shot.topic:
            inner = min(end, shot.visible_s[1]) - max(start, shot.visible_s[0])
            outer = max(end, shot.visible_s[1]) - min(start, shot.visible_s[0])
            ious.append(max(inner, 0.0) / outer)
    return max(ious)


def test_rows_have_the_columns_and_ranges_of_the_published_table() -> None:
    for plan, row in table():
        assert list(row) == [
            "YoutubeID",
            "Start_timestamp",
            "End_timestamp",
            "Caption",
            "UMT_Score",
            "Aesthetic_Score",
        ]
        assert row["YoutubeID"] == plan.vid
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{10}", row["YoutubeID"])
        for column in ("Start_timestamp", "End_timestamp"):
            assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d\d\d", row[column])
        start, end = interval(row)
        assert 0 <= start < end <= plan.duration_s
        assert end - start >= 0.599
        assert row["Caption"] == row["Caption"].lower()
        assert 0.09 <= row["UMT_Score"] <= 0.6
        assert -0.89 <= row["Aesthetic_Score"] <= 9.02


def test_timestamps() -> None:
    assert timestamp(0) == "00:00:00.000"
    assert timestamp(3723.0456) == "01:02:03.046"
    assert timestamp(59.9996) == "00:01:00.000"


def test_intervals_are_loose_but_about_their_shot() -> None:
    ious = [best_iou(plan, row) for plan, row in table() if row["UMT_Score"] >= 0.42]
    assert 0.6 < fmean(ious) < 0.9
    assert min(ious) < 0.5


def test_umt_scores_tell_good_intervals_from_bad_ones() -> None:
    rows = [(best_iou(plan, row), row["UMT_Score"]) for plan, row in table()]
    tight = fmean(score for iou, score in rows if iou > 0.8)
    loose = fmean(score for iou, score in rows if iou < 0.4)
    assert tight > loose + 0.03


def test_a_share_of_the_rows_is_useless() -> None:
    rows = [row for _, row in table()]
    captions = [row["Caption"] for row in rows]
    medium = sum(caption in MEDIUM_CAPTIONS for caption in captions)
    short = sum(len(caption.split()) < 4 for caption in captions)
    repeated = sum(len(set(caption.split())) / len(caption.split()) < 0.55 for caption in captions)
    brief = sum(end - start < 4 for start, end in map(interval, rows))
    poor = sum(row["UMT_Score"] < 0.3 for row in rows)
    keys = [(row["YoutubeID"], row["Caption"], row["Start_timestamp"]) for row in rows]
    duplicates = len(keys) - len(set(keys))
    assert min(medium, short, repeated, brief, poor, duplicates) >= 3
    assert medium + short + repeated + poor + duplicates < len(rows) / 4


def test_the_same_content_returns_without_a_caption_of_its_own() -> None:
    """What the InterVid-MR stage has to find: a caption's moment elsewhere in the video."""
    returning = 0
    for plan in plan_corpus(
        settings_of(duration_s=60, videos={"pretrain": 40, "train": 1, "val": 1, "test": 1})
    )["pretrain"]:
        topics = [shot.topic for shot in plan.shots if shot.topic]
        returning += len(topics) > len(set(topics))
    assert returning > 10
