from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrmodel.errors import DataError
from mrmodel.progress import NullReporter
from mrmodel.synthetic.render import annotate_corpus, plan_corpus, render_corpus
from mrmodel.synthetic.sprites import subjects
from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling
from tests.reporters import RecordingReporter
from tests.synthetic.conftest import CLIP_LEN_S, bytes_of, read_rows, settings_of


def test_same_seed_same_bytes_whatever_the_workers(tmp_path: Path, small_corpus: Path) -> None:
    render_corpus(settings_of(), CLIP_LEN_S, tmp_path / "again", 2, NullReporter())
    assert bytes_of(tmp_path / "again") == bytes_of(small_corpus)


def test_another_seed_gives_another_corpus() -> None:
    first, second = (plan_corpus(settings_of(seed=seed)) for seed in (11, 12))
    assert first["train"][0].shots != second["train"][0].shots
    assert first["pretrain"][0].vid != second["pretrain"][0].vid


def test_more_videos_leave_the_others_as_they_are() -> None:
    few = plan_corpus(settings_of())
    more = settings_of(videos={"pretrain": 2, "train": 3, "val": 2, "test": 2})
    many = plan_corpus(more)
    assert all(many[split][0] == few[split][0] for split in few)


def test_layout(small_corpus: Path) -> None:
    summary = json.loads((small_corpus / "corpus.json").read_text())
    files = set(bytes_of(small_corpus))
    videos = {name for name in files if name.startswith("videos/")}
    assert files - videos == {
        "train.jsonl",
        "val.jsonl",
        "test.jsonl",
        "captions.jsonl",
        "pretrain.jsonl",
        "pretrain_val.jsonl",
        "corpus.json",
    }
    assert len(videos) == 4 == sum(summary["videos"].values())
    named = {row["vid"] for split in ("train", "val", "test") for row in rows(small_corpus, split)}
    named |= {row["YoutubeID"] for row in rows(small_corpus, "captions")}
    assert videos == {f"videos/{vid}.mp4" for vid in named}
    assert summary["reported_split"] == "test"
    assert summary["hygiene"]["shared_texts"] == {"val": 0, "test": 0}
    assert summary["captions"] == len(rows(small_corpus, "captions")) == 6
    size = sum(path.stat().st_size for path in (small_corpus / "videos").iterdir())
    assert summary["video_bytes"] == size


def test_every_frame_is_there(small_corpus: Path) -> None:
    for path in sorted((small_corpus / "videos").iterdir()):
        source = FrameSource(path)
        clips = list(source.clips(CLIP_LEN_S, FrameSampling(frames_per_clip=10, size=None)))
        assert source.report.status == "ok"
        assert source.report.duration_s == pytest.approx(20.0)
        assert len(clips) == 10
        assert {clip.frames.shape for clip in clips} == {(10, 96, 128, 3)}
        assert not any(clip.interpolated for clip in clips)
        # Something happens in every video.
        assert (clips[0].frames[0] != clips[5].frames[0]).mean() > 0.2


def test_videos_of_another_corpus_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "holiday.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 files that are not of this corpus \(holiday.mp4\)"):
        render_corpus(settings_of(), CLIP_LEN_S, tmp_path, 1, NullReporter())


def test_progress_counts_videos(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    settings = settings_of(duration_s=10, width=64, height=64)
    render_corpus(settings, CLIP_LEN_S, tmp_path, 1, reporter)
    assert reporter.events[0] == ("render", 4, {})
    assert sum(steps for name, steps, _ in reporter.events if name == "advance") == 4


def test_qids_are_unique_over_all_splits() -> None:
    settings = settings_of(videos={"pretrain": 0, "train": 9, "val": 9, "test": 9})
    queries = annotate_corpus(plan_corpus(settings), [], 4, CLIP_LEN_S)
    qids = [query.row["qid"] for of_split in queries.values() for query in of_split]
    assert qids == list(range(1, len(qids) + 1))


def test_every_subject_appears_in_a_corpus_of_the_default_size() -> None:
    settings = settings_of(
        duration_s=60, videos={"pretrain": 100, "train": 90, "val": 60, "test": 60}
    )
    plans = plan_corpus(settings)
    shown = {
        shot.topic.subject
        for of_split in plans.values()
        for plan in of_split
        for shot in plan.shots
        if shot.topic
    }
    assert shown == {subject.name for subject in subjects()}


def rows(corpus: Path, name: str) -> list[dict[str, object]]:
    return read_rows(corpus / f"{name}.jsonl")
