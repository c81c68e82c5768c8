"""VideoLights' Algorithm 1: intervals, captions, ratings, and the stage that makes the rows."""

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mrmodel import presets
from mrmodel.config.schema import Config, parse_config
from mrmodel.data.annotations import (
    MAX_PRETRAINING_RATING,
    parse_annotation,
    read_annotations,
)
from mrmodel.encoders.tiny import TinyTextEncoder, TinyVideoEncoder
from mrmodel.errors import ConfigError, DataError
from mrmodel.pretraining.video_captions import generate
from mrmodel.pretraining.video_captions.captioners import PhraseBank
from mrmodel.pretraining.video_captions.generate import (
    CaptioningJob,
    Networks,
    Video,
    caption_videos,
)
from mrmodel.pretraining.video_captions.rows import (
    Captioned,
    Interval,
    clean_caption,
    grades,
    joined,
    rows_of,
    script_scores,
    split_video,
)
from mrmodel.progress import NullReporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.report import pretraining_section
from mrmodel.stages.trainer import pretraining_files
from mrmodel.stages.video_captions import video_captions
from mrmodel.video.decoder import VideoLimits
from tests.synthetic.conftest import bytes_of, read_rows, small_corpus
from tests.video.fixtures import write_video

__all__ = ["small_corpus"]

PHRASES = ["a dog runs over the grass", "two people talk at a table", "a red car drives away"]
CAPTIONS = {"captioner": "phrases", "min_last_s": 4.0, "interval_s": 10.0}


def config_of(**captions: Any) -> Config:
    raw = yaml.safe_load(presets.render("miniature"))
    raw["corpus"]["name"] = "small"
    raw["video_captions"] |= CAPTIONS | captions
    return parse_config(raw)


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("duration_s", "bounds"),
    [
        (7.0, [0, 7.0]),  # shorter than an interval
        (30.0, [0, 10, 20, 30.0]),  # a multiple
        (33.9, [0, 10, 20, 33.9]),  # the rest of 3.9 s joins its neighbour
        (34.0, [0, 10, 20, 30, 34.0]),
        (2.0, [0, 2.0]),
    ],
)
def test_intervals_tile_the_video(duration_s: float, bounds: list[float]) -> None:
    n_clips = math.ceil(duration_s / 2)
    found = split_video(duration_s, n_clips, 2.0, 10.0, 4.0)
    assert [one.start_s for one in found] + [found[-1].end_s] == bounds
    clips = [range(one.first_clip, one.end_clip) for one in found]
    assert set[int]().union(*clips) == set(range(n_clips))


def test_neighbours_share_the_clip_across_their_border() -> None:
    found = split_video(30.0, 10, 3.0, 10.0, 4.0)
    assert [(one.first_clip, one.end_clip) for one in found] == [(0, 4), (3, 7), (6, 10)]
    assert all(a.end_clip - b.first_clip <= 1 for a, b in pairwise(found))


def test_clips_lie_within_features_that_are_shorter_than_the_video() -> None:
    (only,) = split_video(10.0, 4, 2.0, 10.0, 4.0)
    assert (only.first_clip, only.end_clip, only.end_s) == (0, 4, 10.0)
    assert [one.end_clip for one in split_video(30.0, 10, 2.0, 10.0, 4.0)] == [5, 10]


# ---------------------------------------------------------------- captions and ratings


def test_the_words_of_a_captioner_for_the_picture_are_cut() -> None:
    assert clean_caption(" A photo of a dog ") == "a dog"
    assert clean_caption("an image of the photo of a dog") == "the photo of a dog"
    assert clean_caption("a dog beside a picture of a cat") == "a dog beside a picture of a cat"


def test_grades_keep_the_order_and_the_script_its_clamp() -> None:
    assert grades(np.array([0.1, 0.2, 0.3, 0.5]), 0.1, 0.5).tolist() == [1, 1, 2, 4]
    assert grades(np.array([0.3, 0.3]), 0.3, 0.3).tolist() == [2, 2]
    found = script_scores(np.array([0.0, 0.4, 0.5, 1.0]))
    assert found == pytest.approx([2.718, 2.718, 3.490, 12.182], abs=5e-4)
    assert found.max() <= MAX_PRETRAINING_RATING


def one(start_s: float, caption: str, scores: dict[int, float]) -> Captioned:
    interval = Interval(start_s, start_s + 10, min(scores), max(scores) + 1)
    return Captioned(caption, [interval], scores)


def test_repeated_scenes_become_one_row_with_all_their_windows() -> None:
    vectors = np.array([[1, 0], [0.95, 0.3122], [0, 1], [1, 0]], dtype=np.float32)
    parts = [
        one(0, "a dog", {0: 0.1, 4: 0.2}),
        one(10, "the dog", {4: 0.3, 5: 0.4}),
        one(20, "a cat", {10: 0.5}),
        one(30, "a dog", {15: 0.9}),
    ]
    rows = rows_of("v", 40.0, joined(parts, vectors, 0.9), "grades", 0.0, 0)
    assert [row["query"] for row in rows] == ["a dog", "a cat"]
    assert rows[0]["relevant_windows"] == [[0, 20], [30, 40]]
    assert rows[0]["relevant_clip_ids"] == [0, 4, 5, 15]
    assert rows[0]["saliency_scores"] == [[1] * 3, [1] * 3, [2] * 3, [4] * 3]
    apart = joined(parts, vectors, None)
    assert [len(group.intervals) for group in apart] == [2, 1, 1]
    # Where the file's clock starts before the pictures, annotations count from its start.
    (late, *_) = rows_of("v", 43.0, apart, "script", 3.0, 2)
    assert late["relevant_windows"] == [[3, 13], [33, 43]]
    assert late["relevant_clip_ids"] == [2, 6, 17]
    assert late["saliency_scores"] == [[2.718282], [2.718282], [9.487736]]
    with pytest.raises(DataError, match=r"ratings lie in 0\.\.4"):
        parse_annotation(late, 2.0)
    read, _ = parse_annotation(late, 2.0, MAX_PRETRAINING_RATING)
    assert read.saliency_scores[-1] == (9.487736,)


# ---------------------------------------------------------------- videos


class FixedCaptions:
    """Captions that the test chooses, in place of those of a network."""

    def __init__(self, *captions: str) -> None:
        self.captions = captions

    def caption(self, frames: np.ndarray) -> list[str]:
        assert len(frames) == len(self.captions)
        return list(self.captions)


def job_in(folder: Path, **captions: Any) -> CaptioningJob:
    settings = config_of(**captions).video_captions
    assert settings is not None
    return CaptioningJob(settings, 2.0, VideoLimits(), folder)


def networks(*captions: str) -> Networks:
    bank = PhraseBank(TinyVideoEncoder(), TinyTextEncoder(), PHRASES)
    rules = config_of().intervid.captions
    return Networks(FixedCaptions(*captions) if captions else bank, bank, rules)


def test_what_cannot_be_captioned_is_counted(tmp_path: Path) -> None:
    # 30 s at one frame a second; the clip in the middle of the second interval has none.
    stamps = [1000 * second for second in range(30) if not 13 <= second < 18]
    path = write_video(tmp_path / "gap.mkv", len(stamps), 1, pts_ms=stamps)
    (tmp_path / "broken.mp4").write_bytes(b"this is no video")
    videos = [Video("gap", path, 30.0), Video("broken", tmp_path / "broken.mp4", 30.0)]
    work = tmp_path / "work"
    rows, counts = caption_videos(
        videos, job_in(work), lambda: networks("a picture of a dog in the snow", ""), NullReporter()
    )
    assert [row["query"] for row in rows] == ["a dog in the snow"]
    assert rows[0]["relevant_windows"] == [[0, 10]]
    assert counts == {
        "video invalid_data": 1,
        "intervals": 3,
        "frame not decoded": 1,
        "caption empty": 1,
        "joined": 0,
        "rows": 1,
    }


@pytest.mark.parametrize("frame", ["middle", "first", "best"])
def test_the_frame_that_is_captioned(tmp_path: Path, frame: str) -> None:
    path = write_video(tmp_path / "a.mp4", 20, 1)
    bank, seen = networks().captioner, []

    class Watching:
        def caption(self, frames: np.ndarray) -> list[str]:
            seen.extend(frames)
            return bank.caption(frames)

    found = networks()
    watched = Networks(Watching(), found.scorer, found.rules)
    caption_videos(
        [Video("a", path, 20.0)], job_in(tmp_path, frame=frame), lambda: watched, NullReporter()
    )
    clips = [clip.frames for clip in generate.FrameSource(path).clips(2.0, found.scorer.sampling)]
    places = [next(n for n, clip in enumerate(clips) if (clip == x).all()) for x in seen]
    if frame == "best":
        vectors = found.scorer.image_vectors(np.stack(clips))
        near = [(v @ v.T).sum(axis=1).argmax() for v in (vectors[:5], vectors[5:])]
        assert places == [near[0], near[1] + 5]
    else:
        assert places == ([2, 7] if frame == "middle" else [0, 5])


# ---------------------------------------------------------------- the stage


@pytest.fixture
def corpus(tmp_path: Path, small_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRMODEL_TRACKING", "off")
    shutil.copytree(small_corpus, tmp_path / "data/small")
    return tmp_path / "data/small"


def test_the_stage_makes_rows_of_training_videos_only(corpus: Path) -> None:
    out = Path("data/video_captions")
    video_captions(config_of(), NullReporter())
    first, files = bytes_of(out), {path.stem for path in (corpus / "videos").iterdir()}
    rows = read_annotations(out / "train.jsonl")
    assert {row.vid for row in rows} == {read_rows(corpus / "train.jsonl")[0]["vid"]}
    phrases = {row["Caption"] for row in read_rows(corpus / "captions.jsonl")}
    assert {row.query for row in rows} <= phrases
    assert pretraining_files(Paths(config_of()))[0] == out / "train.jsonl"
    video_captions(config_of(), NullReporter())
    assert bytes_of(out) == first
    video_captions(config_of(include_eval_videos=True, scale="script"), NullReporter())
    published = read_annotations(out / "train.jsonl")
    assert len({row.vid for row in published}) == 3 < len(files)
    assert {len(ratings) for row in published for ratings in row.saliency_scores} == {1}
    report = json.loads((out / "report.json").read_text())
    assert report["counts"]["evaluation videos captioned"] == 2
    section = pretraining_section(Paths(config_of()))
    assert section.text.startswith(f"{len(published)} rows")
    assert ["rows", str(len(published))] in section.tables[0].rows
    assert list(Path(".mrmodel/resume").glob("video_captions-small/*")) == []


def test_an_interrupted_run_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 20, 1)
    videos = [Video(name, path, 20.0) for name in ("a", "b")]

    class Killed(Exception):
        pass

    class Dying:
        left = 1

        def caption(self, frames: np.ndarray) -> list[str]:
            if not self.left:
                raise Killed
            self.left -= 1
            return networks().captioner.caption(frames)

    whole = caption_videos(videos, job_in(tmp_path / "whole"), networks, NullReporter())
    found = networks()
    dying = Networks(Dying(), found.scorer, found.rules)
    with pytest.raises(Killed):
        caption_videos(videos, job_in(tmp_path / "work"), lambda: dying, NullReporter())
    dying.captioner.left = 1  # type: ignore[attr-defined]
    rest = caption_videos(videos, job_in(tmp_path / "work"), lambda: dying, NullReporter())
    assert rest == whole
    assert [row["vid"] for row in whole[0]] == sorted(row["vid"] for row in whole[0])


def test_without_a_captioner_the_set_is_empty_and_without_phrases_it_is_refused(
    corpus: Path,
) -> None:
    video_captions(config_of(captioner=None), NullReporter())
    assert Path("data/video_captions/train.jsonl").read_bytes() == b""
    assert pretraining_files(Paths(config_of()))[0] == Path("data/intervid_mr/train.jsonl")
    (corpus / "captions.jsonl").write_text("")
    with pytest.raises(DataError, match=r"no usable phrase in captions\.jsonl"):
        video_captions(config_of(), NullReporter())


@pytest.mark.parametrize(
    ("captions", "rule"),
    [
        ({"captioner": "blip2"}, "needs captioner_weights and scorer_weights"),
        ({"score": "itm"}, "'phrases' has none"),
    ],
)
def test_settings_that_cannot_work_are_refused(captions: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        config_of(**captions)
