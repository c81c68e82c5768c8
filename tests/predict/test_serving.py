"""serving.json: how the windows of a model folder are made, and folders without one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from mrmodel.config.postprocess import VALIDATION
from mrmodel.errors import CheckpointError
from mrmodel.features.prepare import TEF_DIM
from mrmodel.models import build_model
from mrmodel.predict.serving import SERVING, read_serving, write_serving
from mrmodel.train.checkpoint import CONFIG, ModelConfig, ModelStream, save_model
from tests.postprocessing import postprocess

SMALL = {"hidden": 16, "heads": 2, "ffn": 24}


def model_folder(folder: Path, name: str, extra: dict[str, Any]) -> Path:
    """A model folder whose config.json has the settings `extra` too, as earlier versions wrote."""
    config = ModelConfig(
        model=name,
        settings=SMALL,
        video_streams=(ModelStream("tiny.video", 12, None),),
        text_streams=(ModelStream("tiny.text", 12, None),),
        clip_len_s=2.0,
        max_clips=75,
        max_tokens=32,
        protocol="qvhighlights",
        training={},
    )
    save_model(folder, build_model(name, 12 + TEF_DIM, 12, SMALL), config)
    content = json.loads((folder / CONFIG).read_text())
    content["settings"] |= extra
    (folder / CONFIG).write_text(json.dumps(content))
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    chosen = postprocess(alpha=0.2, fusion={"weights": [1.0, 2.5]}, nms_iou=0.9)
    write_serving(tmp_path, chosen)
    assert read_serving(tmp_path) == chosen
    assert json.loads((tmp_path / SERVING).read_text())["format"] == 1


def test_later_keys_are_read_and_are_not_written_at_their_defaults(tmp_path: Path) -> None:
    write_serving(tmp_path, VALIDATION)
    found = json.loads((tmp_path / SERVING).read_text())["postprocess"]
    assert found == {
        "alpha": 0.5,
        "anchors": {"top_k": 100, "nms_iou": 0.6, "keep": 25},
        "fusion": {
            "enabled": True, "conf": "avg", "iou_thr": 0.75, "weights": [1.0, 1.0], "skip": 0.0,
        },
        "round_to_clips": True,
        "nms_iou": -1.0,
        "max_windows": 10,
    }  # fmt: skip
    chosen = postprocess(
        anchors={"min_score": 0.01, "keep_empty": True},
        anchors_alone={"top_k": 9, "nms_iou": 0.5, "keep": 10, "min_score": 0.05},
        official={"max_end_s": 150.0, "round_to_s": 2.0, "min_window_s": 2.0},
    )
    write_serving(tmp_path, chosen)
    assert read_serving(tmp_path) == chosen


def test_a_folder_without_the_file_answers_as_before_there_was_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = read_serving(model_folder(tmp_path / "older", "qd_detr", {}))
    assert "no serving.json" in caplog.text
    assert "dvc repro package" in caplog.text
    assert found == postprocess(nms_iou=0.7)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("{", "not valid JSON"),
        ("[]", "another format than 1; run `dvc repro package`"),
        (json.dumps({"format": 2, "postprocess": {}}), "another format than 1"),
        (json.dumps({"format": 1}), "postprocess"),
        (
            json.dumps({"format": 1, "postprocess": VALIDATION.model_dump() | {"alpha": 2}}),
            r"postprocess\.alpha = 2",
        ),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(tmp_path: Path, content: str, rule: str) -> None:
    (tmp_path / SERVING).write_text(content)
    with pytest.raises(CheckpointError, match=rf"serving\.json: .*{rule}"):
        read_serving(tmp_path)


def test_validation_in_training_fuses_as_each_preset_says() -> None:
    torch.manual_seed(0)
    for preset, iou_thr, anchors in (("released", 0.8, 10), ("robust", 0.75, 25)):
        model = build_model("sg_detr", 12 + TEF_DIM, 12, SMALL | {"preset": preset})
        assert model.validation.fusion.iou_thr == iou_thr
        assert model.validation.anchors.keep == anchors
