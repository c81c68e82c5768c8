"""Trials on stored detections give what the model itself gives with the same settings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mrmodel.data.loader import BatchBuilder, LoaderSettings, MomentDataset, RowLimits
from mrmodel.data.targets import TargetSettings
from mrmodel.errors import ConfigError, DataError
from mrmodel.features.keys import text_key
from mrmodel.features.prepare import TEF_DIM
from mrmodel.features.store import MemoryStore
from mrmodel.models import MomentModel, build_model
from mrmodel.models.sg_detr.settings import InferSettings, WbfSettings
from mrmodel.predict.inference import predict_set
from mrmodel.predict.postprocess import PostprocessSettings
from mrmodel.predict.tuning import (
    CachedDetections,
    PostHocChoice,
    cache_detections,
    predict_cached,
)
from mrmodel.section import validate_section
from mrmodel.types import Annotation

DIM, BATCH = 12, 4
SMALL: dict[str, Any] = {"hidden": 16, "heads": 2, "ffn": 24, "queries": 6}
SHALLOW = {
    part: {"layers": 1} for part in ("pool", "sgca", "encoder", "decoder")
} | {"atss": {"levels": 3}}  # fmt: skip
CHOICES = [
    PostHocChoice(),
    PostHocChoice(nms_iou=0.4),
    PostHocChoice(infer=InferSettings(alpha=0.0)),
    PostHocChoice(
        infer=InferSettings(
            alpha=0.8,
            atss_keep=7,
            wbf=WbfSettings(iou_thr=0.2, weights=[1.0, 0.3], conf="max"),
        ),
        nms_iou=0.9,
    ),
    PostHocChoice(infer=InferSettings(wbf=WbfSettings(enabled=False))),
]
WITHOUT_ANCHORS = [CHOICES[place] for place in (0, 1, 2, 4)]
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


@pytest.mark.parametrize(
    ("settings", "choices"),
    [
        ({}, CHOICES),
        ({"detector": "dab"}, WITHOUT_ANCHORS),
        ({"iou_head": False}, CHOICES[3:4]),
        ({"atss": {"layout": "multi_width", "widths": [2.0, 8.0]}}, CHOICES[:1]),
    ],
)
def test_trials_are_bit_equal_to_the_model(
    data: MomentDataset, settings: dict[str, Any], choices: list[PostHocChoice]
) -> None:
    stored = cache_detections(make_model(**settings), data, BATCH)
    for choice in choices:
        chosen = make_model(**settings, infer=choice.infer.model_dump())
        for finish in FINISHES:
            settings_of_run = dataclasses.replace(finish, nms_iou=choice.nms_iou)
            expected = predict_set(chosen, data, BATCH, settings_of_run)
            found = predict_cached(stored, choice, finish)
            assert found == expected
            assert len({answer.windows for answer in found}) == len(data)


def test_choices_make_a_difference(data: MomentDataset, cached: CachedDetections) -> None:
    answers = [predict_cached(cached, choice, FINISHES[1]) for choice in CHOICES]
    assert all(first != second for n, first in enumerate(answers) for second in answers[n + 1 :])


@pytest.mark.parametrize("settings", [{}, {"detector": "dino", "iou_head": False}])
def test_detections_survive_the_disk(
    data: MomentDataset, settings: dict[str, Any], tmp_path: Path
) -> None:
    stored = cache_detections(make_model(**settings), data, BATCH)
    stored.save(tmp_path / "detections.pt")
    loaded = CachedDetections.load(tmp_path / "detections.pt")
    assert (loaded.raw.iou_logits is None) == ("iou_head" in settings)
    choice = CHOICES[0]
    assert predict_cached(loaded, choice, FINISHES[0]) == predict_cached(
        stored, choice, FINISHES[0]
    )


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
            expected = predict_set(model, data, BATCH, dataclasses.replace(finish, nms_iou=nms_iou))
            assert predict_cached(loaded, PostHocChoice(nms_iou=nms_iou), finish) == expected


def test_fusion_without_anchors_is_refused(data: MomentDataset) -> None:
    stored = cache_detections(make_model(detector="dino"), data, BATCH)
    choice = PostHocChoice(infer=InferSettings(wbf=WbfSettings(enabled=True)))
    with pytest.raises(ValueError, match="no anchors"):
        predict_cached(stored, choice, FINISHES[0])


def test_a_choice_is_checked_and_survives_json() -> None:
    for choice in CHOICES:
        text = json.dumps(choice.model_dump())
        assert validate_section(PostHocChoice, json.loads(text), "choice") == choice
    for wrong in ({"nms_iou": 2.0}, {"infer": {"alpha": -0.1}}, {"infer": {"wbf": {"weight": 1}}}):
        with pytest.raises(ConfigError):
            validate_section(PostHocChoice, wrong, "choice")
