"""Trials on stored detections give what the model itself gives with the same settings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mrmodel.config.base import validate_section
from mrmodel.config.postprocess import PostprocessConfig
from mrmodel.data.loader import BatchBuilder, LoaderSettings, MomentDataset, RowLimits
from mrmodel.data.targets import TargetSettings
from mrmodel.errors import ConfigError, DataError
from mrmodel.features.keys import text_key
from mrmodel.features.prepare import TEF_DIM
from mrmodel.features.store import MemoryStore
from mrmodel.models import MomentModel, build_model
from mrmodel.predict.inference import predict_set, predict_systems
from mrmodel.predict.post_hoc import CachedDetections, cache_detections, predict_cached
from mrmodel.predict.postprocess import Postprocess, PostprocessSettings
from mrmodel.types import Annotation, Prediction
from tests.postprocessing import postprocess
from tests.rounding import rounding

DIM, BATCH = 12, 4
SMALL: dict[str, Any] = {"hidden": 16, "heads": 2, "ffn": 24, "queries": 6}
PARTS = ("pooling", "cross_attention", "encoder", "decoder", "anchor_head")
SHALLOW: dict[str, Any] = {f"{part}_layers": 1 for part in PARTS}
LEARNED = {"query_selection": False, "anchor_head": False, "auxiliary_queries": False}
CHOICES = [
    postprocess(),
    postprocess(nms_iou=0.4),
    postprocess(alpha=0.0),
    postprocess(
        alpha=0.8,
        anchors={"keep": 7},
        fusion={"iou_thr": 0.2, "weights": [1.0, 0.3], "conf": "max"},
        nms_iou=0.9,
    ),
    postprocess(fusion={"enabled": False}),
]
FINISHES = [
    PostprocessSettings(round_to_s=2.0),
    PostprocessSettings(max_windows=4),
    PostprocessSettings(official=True, clamp_s=(0.0, 150.0), round_to_s=2.0),
]


@pytest.fixture(scope="module")
def data() -> MomentDataset:
    """Ten queries about videos of 3 to 21 clips, so that batches differ in their padding."""
    rng = np.random.default_rng(0)
    rows, video, text = [], {}, {}
    for number, n_clips in enumerate([5, 21, 3, 9, 9, 17, 4, 12, 7, 20]):
        start = 2.0 * int(rng.integers(0, n_clips - 1))
        first = int(start) // 2
        rows.append(
            Annotation(
                qid=f"q{number}" if number % 2 else number,
                query=f"sentence {number}",
                vid=f"video{number}",
                duration=2.0 * n_clips - 0.5,
                relevant_windows=((start, start + 2.0),),
                relevant_clip_ids=(min(first, n_clips - 2),),
                saliency_scores=((2.0, 3.0, 4.0),),
            )
        )
        video[rows[-1].vid] = rng.normal(size=(n_clips, DIM))
        text[text_key(rows[-1].query)] = rng.normal(size=(int(rng.integers(3, 6)), DIM))
    builder = BatchBuilder(
        [MemoryStore("video", video, 2.0)], [MemoryStore("text", text)], RowLimits(75, 32)
    )
    return MomentDataset(rows, builder, LoaderSettings(BATCH, 3, TargetSettings(max_windows=5)))


def make_model(**settings: Any) -> MomentModel:
    """A model whose heads say different things of different clips: all weights are random."""
    torch.manual_seed(1)
    model = build_model("sg_detr", DIM + TEF_DIM, DIM, SMALL | SHALLOW | settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def cached(data: MomentDataset) -> CachedDetections:
    return cache_detections(make_model(), data, BATCH)


def assert_same_predictions(found: list[Prediction], expected: list[Prediction]) -> None:
    """The same clip scores, and windows that are equal up to rounding.

    All rows at once are other shapes than batches, so that the scores, powers, are taken at other
    places of a vector, and fused ends are means weighed by them. The official form then rounds to
    four digits. Another alpha, weight or threshold moves a window or a score by 0.01 or more.
    """
    atol = 1e-4 + rounding(11, magnitude=42.0, stages=2)  # the longest video has 42 seconds
    for one, other in zip(found, expected, strict=True):
        assert (one.qid, one.query, one.vid) == (other.qid, other.query, other.vid)
        np.testing.assert_allclose(one.windows, other.windows, rtol=0, atol=atol)
        assert one.saliency == other.saliency  # of the same batches


@pytest.mark.parametrize(
    ("settings", "choices"),
    [
        ({}, CHOICES),
        (LEARNED, CHOICES),
        ({"iou_head": False}, CHOICES[3:4]),
        ({"preset": "released"}, CHOICES[:1]),
    ],
)
def test_trials_equal_the_model(
    data: MomentDataset, settings: dict[str, Any], choices: list[PostprocessConfig]
) -> None:
    model = make_model(**settings)
    stored = cache_detections(model, data, BATCH)
    for choice in choices:
        for finish in FINISHES:
            after = Postprocess(choice, dataclasses.replace(finish, nms_iou=choice.nms_iou))
            expected = predict_set(model, data, BATCH, after)
            found = predict_cached(stored, after)
            assert_same_predictions(found, expected)
            assert len({answer.windows for answer in found}) == len(data)


@pytest.mark.parametrize("official", [True, False])
def test_one_run_gives_what_is_served_and_the_systems_alone(
    data: MomentDataset, cached: CachedDetections, official: bool
) -> None:
    model = make_model()
    batches = []
    model.register_forward_hook(lambda _, inputs, output: batches.append(len(inputs[0])))
    after = Postprocess(postprocess(anchors={"keep": 7}), PostprocessSettings(official=official))
    found = predict_systems(model, data, BATCH, after)
    assert sum(batches) == len(data)
    assert list(found) == [None, "decoder", "anchors"]
    assert found[None] == predict_set(model, data, BATCH, after)
    for system, answers in found.items():
        assert_same_predictions(predict_cached(cached, after.alone(system)), answers)
        listed = [[window[2] for window in answer.windows] for answer in answers]
        # What is served is in the order of the fused scores, the decoder alone in another one.
        in_order = [scores == sorted(scores, reverse=True) for scores in listed]
        assert all(in_order) == (system != "decoder")
        assert all(listed)


def test_a_model_with_one_kind_of_windows_has_no_systems(data: MomentDataset) -> None:
    for name, settings in (("qd_detr", {}), ("sg_detr", SHALLOW | {"highlights_only": True})):
        model = build_model(name, DIM + TEF_DIM, DIM, SMALL | settings).eval()
        after = Postprocess(postprocess(), FINISHES[0])
        assert predict_systems(model, data, BATCH, after) == {
            None: predict_set(model, data, BATCH, after)
        }


def test_choices_make_a_difference(data: MomentDataset, cached: CachedDetections) -> None:
    answers = [
        predict_cached(
            cached, Postprocess(choice, dataclasses.replace(FINISHES[1], nms_iou=choice.nms_iou))
        )
        for choice in CHOICES
    ]
    assert all(first != second for n, first in enumerate(answers) for second in answers[n + 1 :])


@pytest.mark.parametrize("settings", [{}, LEARNED | {"iou_head": False}])
def test_detections_survive_the_disk(
    data: MomentDataset, settings: dict[str, Any], tmp_path: Path
) -> None:
    stored = cache_detections(make_model(**settings), data, BATCH)
    stored.save(tmp_path / "detections.pt")
    loaded = CachedDetections.load(tmp_path / "detections.pt")
    assert (loaded.raw.iou_logits is None) == ("iou_head" in settings)
    after = Postprocess(CHOICES[0], FINISHES[0])
    assert predict_cached(loaded, after) == predict_cached(stored, after)


def test_detections_without_start_times_count_from_the_first_picture(
    cached: CachedDetections, tmp_path: Path
) -> None:
    """Format 1, which unfinished searches of earlier versions hold."""
    cached.save(tmp_path / "detections.pt")
    parts = torch.load(tmp_path / "detections.pt", weights_only=True)
    del parts["start_s"]
    torch.save(parts | {"format": "mrmodel detections 1"}, tmp_path / "detections.pt")
    loaded = CachedDetections.load(tmp_path / "detections.pt")
    assert loaded.start_s.tolist() == [0.0] * len(cached.qids)
    after = Postprocess(CHOICES[0], FINISHES[0])
    assert predict_cached(loaded, after) == predict_cached(cached, after)


def test_another_file_is_refused(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"model\.pt.*no detections"):
        CachedDetections.load(tmp_path / "model.pt")


def test_of_a_model_without_raw_detections_only_the_finish_can_be_chosen(
    data: MomentDataset, tmp_path: Path
) -> None:
    model = build_model("qd_detr", DIM + TEF_DIM, DIM, SMALL).eval()
    stored = cache_detections(model, data, BATCH)
    stored.save(tmp_path / "detections.pt")
    loaded = CachedDetections.load(tmp_path / "detections.pt")
    for finish in FINISHES:
        for nms_iou in (-1.0, 0.4):
            after = Postprocess(postprocess(), dataclasses.replace(finish, nms_iou=nms_iou))
            assert predict_cached(loaded, after) == predict_set(model, data, BATCH, after)


def test_a_choice_is_checked_and_survives_json() -> None:
    for choice in CHOICES:
        text = json.dumps(choice.model_dump())
        assert validate_section(PostprocessConfig, json.loads(text), "postprocess") == choice
    for wrong in ({"nms_iou": 2.0}, {"alpha": -0.1}, {"fusion": {"weight": 1}}):
        with pytest.raises(ConfigError):
            postprocess(**wrong)
