"""Sound before the first picture: times that people see and write are a player's times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mrmodel.cli.features import group
from mrmodel.data.annotations import from_first_clip
from mrmodel.data.feature_check import late_starts
from mrmodel.data.loader import BatchBuilder, LoaderSettings, MomentDataset, RowLimits
from mrmodel.data.targets import TargetSettings
from mrmodel.features.extraction.jobs import VideoJob, video_entry
from mrmodel.features.index import read_index
from mrmodel.features.keys import text_key
from mrmodel.features.manifest import StreamInfo
from mrmodel.features.prepare import TEF_DIM
from mrmodel.features.store import FeatureStore, MemoryStore
from mrmodel.features.writer import FeatureWriter
from mrmodel.models import build_model
from mrmodel.predict.inference import predict_set
from mrmodel.predict.post_hoc import CachedDetections, cache_detections, predict_cached
from mrmodel.predict.postprocess import Postprocess, PostprocessSettings
from mrmodel.predict.zero_shot import predict_zero_shot
from mrmodel.types import Annotation, Prediction
from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling
from tests.postprocessing import postprocess
from tests.project import Project

FILE = Path(__file__).parent / "files/video-starts-late/video_starts_late.mp4"
START_S, CLIPS, DIM = 4.0, 6, 8
SAMPLING = FrameSampling(frames_per_clip=1, size=(16, 16), rule="middle", resize="bilinear")


def rows_of_player() -> list[Annotation]:
    return [
        Annotation(1, "first", "late", 16.0, ((4.0, 6.0),), (2,), ((4.0, 3.0, 4.0),)),
        Annotation(
            2, "second", "late", 16.0, ((2.0, 8.5), (12, 16)), (1, 2, 6), ((1,), (2,), (3,))
        ),
        Annotation(3, "third", "usual", 12.0, ((4.0, 6.0),), (2,), ((4.0, 3.0, 4.0),)),
    ]


def store_of(folder: Path, start_s: float) -> FeatureStore:
    rows = np.random.default_rng(3).normal(size=(2 * CLIPS, DIM)).astype(np.float16)
    source = FrameSource(FILE)
    list(source.clips(2.0, SAMPLING))
    entry = video_entry(VideoJob("late", FILE, {}), source.report)
    assert (entry.start_s, entry.duration_s, entry.n_rows) == (START_S, 12.0, CLIPS)
    info = StreamInfo(
        stream="s", modality="video", keyed_by="vid", dim=DIM, clip_len_s=2.0, normalised=False,
        fingerprint={},
    )  # fmt: skip
    with FeatureWriter(folder, info) as writer:
        writer.add(type(entry)("late", CLIPS, 12.0, start_s=start_s), rows[:CLIPS])
        writer.add(type(entry)("usual", CLIPS, 12.0), rows[CLIPS:])
    return FeatureStore(folder)


def data_of(folder: Path, rows: list[Annotation], start_s: float) -> MomentDataset:
    rng = np.random.default_rng(4)
    texts = {text_key(row.query): rng.normal(size=(3, DIM)) for row in rows_of_player()}
    builder = BatchBuilder(
        [store_of(folder, start_s)], [MemoryStore("text", texts)], RowLimits(75, 32)
    )
    return MomentDataset(rows, builder, LoaderSettings(4, 3, TargetSettings(max_windows=None)))


@pytest.fixture
def late(tmp_path: Path) -> MomentDataset:
    """Annotations in a player's time."""
    return data_of(tmp_path / "late", rows_of_player(), START_S)


@pytest.fixture
def usual(tmp_path: Path) -> MomentDataset:
    """The same as if the file started with the first picture."""
    rows = [
        Annotation(1, "first", "late", 12.0, ((0.0, 2.0),), (0,), ((4.0, 3.0, 4.0),)),
        Annotation(2, "second", "late", 12.0, ((0.0, 4.5), (8, 12)), (0, 4), ((2,), (3,))),
        rows_of_player()[2],
    ]
    return data_of(tmp_path / "usual", rows, 0.0)


def assert_later(found: list[Prediction], expected: list[Prediction]) -> None:
    """The same answers, those of the late video as a player shows them."""
    for one, other in zip(found, expected, strict=True):
        start_s, before = (START_S, 2) if one.vid == "late" else (0.0, 0)
        moved = [(a + start_s, b + start_s, score) for a, b, score in other.windows]
        np.testing.assert_allclose(one.windows, moved, rtol=0, atol=1e-9)
        assert one.saliency == (min(other.saliency),) * before + other.saliency


def test_training_sees_what_it_would_see_without_the_sound(
    late: MomentDataset, usual: MomentDataset
) -> None:
    (batch, targets), (other, expected) = (data.batch([0, 1, 2], 0) for data in (late, usual))
    assert batch.start_s == [START_S, START_S, 0.0]
    assert batch.duration_s == other.duration_s == [12.0] * 3
    assert torch.equal(batch.video, other.video)
    assert torch.equal(targets.spans_cxw, expected.spans_cxw)
    assert targets.span_counts == expected.span_counts == [1, 2, 1]
    assert torch.equal(targets.saliency_labels, expected.saliency_labels)


@pytest.mark.parametrize(
    "finish",
    [
        PostprocessSettings(round_to_s=2.0),
        PostprocessSettings(official=True, clamp_s=(0.0, 150.0), round_to_s=2.0),
    ],
)
def test_answers_are_moved_by_the_offset(
    late: MomentDataset, usual: MomentDataset, tmp_path: Path, finish: PostprocessSettings
) -> None:
    torch.manual_seed(1)
    small: dict[str, Any] = {"hidden": 16, "heads": 2, "ffn": 24, "queries": 6}
    model = build_model("moment_detr", DIM + TEF_DIM, DIM, small).eval()
    after = Postprocess(postprocess(), finish)
    found, expected = (predict_set(model, data, 4, after) for data in (late, usual))
    assert_later(found, expected)
    # Searches for post-processing work on stored detections.
    cache_detections(model, late, 4).save(tmp_path / "cached")
    assert_later(predict_cached(CachedDetections.load(tmp_path / "cached"), after), expected)


def test_zero_shot_answers_are_moved_too(late: MomentDataset, usual: MomentDataset) -> None:
    answers = [
        predict_zero_shot(data.annotations, data.builder.video[0], data.builder.text[0], 0.5)
        for data in (late, usual)
    ]
    assert_later(*answers)


@pytest.mark.parametrize(
    ("vid", "rows", "start_s"),
    [
        ("late_4.0_8.0", [0, 1], 0.0),
        ("late_2.0_8.0", [0, 1], 2.0),  # two seconds before the first picture
        ("late_5.0_10.0", [1, 2], 1.0),  # its first whole clip shows 6 to 8 s
        ("usual_4.0_8.0", [2, 3], 0.0),
    ],
)
def test_segments_are_cut_by_a_player(
    tmp_path: Path, vid: str, rows: list[int], start_s: float
) -> None:
    store = store_of(tmp_path, START_S)
    whole = store.gather([vid.partition("_")[0]])[0][0]
    found = store.resolve([vid])
    assert np.array_equal(store.gather(found)[0][0], whole[rows])
    assert found.start_s.tolist() == [pytest.approx(start_s)]


def test_an_annotation_without_offset_is_left_alone() -> None:
    row = rows_of_player()[0]
    assert from_first_clip(row, 0.0, 2.0) is row


def test_ratings_of_clips_before_the_picture_are_left_out() -> None:
    row = from_first_clip(rows_of_player()[1], START_S, 2.0)
    assert row.relevant_windows == ((0.0, 4.5), (8.0, 12.0))
    assert (row.relevant_clip_ids, row.saliency_scores) == ((0, 4), ((2,), (3,)))


def test_verify_names_the_videos(tmp_path: Path) -> None:
    store_of(tmp_path, START_S)
    assert [line.partition(":")[0] for line in late_starts(tmp_path)] == ["late"]
    found = CliRunner().invoke(group, ["verify", str(tmp_path)])
    assert "late: pictures start 4.00 s after the file does" in found.output
    assert found.exit_code == 0
    assert [row.entry.start_s for row in read_index(tmp_path)] == [START_S, 0.0]


@pytest.mark.parametrize("model", ["models/served/moment_detr", "zero-shot"])
def test_the_command_answers_in_a_players_time(reproduced: Project, model: str) -> None:
    options = ("--query", "a red card", "--json", "--model", model)
    row = json.loads(reproduced.invoke("predict", str(FILE), *options))
    assert row["duration"] == 16.0
    scores = row["pred_saliency_scores"]
    assert len(scores) == 8
    assert scores[:2] == [min(scores[2:])] * 2
    assert row["pred_relevant_windows"]
    for start, end, _ in row["pred_relevant_windows"]:
        assert START_S <= start < end <= 16.0
