import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mrmodel.errors import CheckpointError, FeatureMismatch
from mrmodel.train.checkpoint import (
    ModelConfig,
    ModelStream,
    load_model,
    load_start,
    read_model_config,
    save_model,
)
from tests.train.conftest import DIM, SETTINGS, make_model


def model_config() -> ModelConfig:
    return ModelConfig(
        model="moment_detr",
        settings=SETTINGS,
        video_streams=(ModelStream("tiny.video", DIM, "aa"),),
        text_streams=(ModelStream("tiny.text", DIM, "bb"),),
        clip_len_s=2.0,
        max_clips=75,
        max_tokens=32,
        protocol="qvhighlights",
        training={"run": "finetune"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", make_model(), model_config())
    return tmp_path / "model"


def test_a_saved_model_comes_back_as_it_was(folder: Path) -> None:
    model, config = load_model(folder)
    assert config == model_config()
    assert not model.training
    for name, value in make_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_equal_models_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again", make_model(), model_config())
    for name in ("model.safetensors", "config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no config\.json"):
        read_model_config(tmp_path / "nowhere")


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_model(folder)


def test_weights_that_do_not_fit_are_named_with_their_shapes(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["settings"]["ffn"] = 96
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"has shape \(64.*expected \(96"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "another format"),
        ({"model": "no_such"}, "unknown model 'no_such'"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(folder: Path, change: dict, message: str) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def streams(*names: str, fingerprint: str | None = "aa") -> tuple[ModelStream, ...]:
    return tuple(ModelStream(name, DIM, fingerprint) for name in names)


def test_training_goes_on_from_a_folder(folder: Path) -> None:
    model = model_config().build()
    load_start(model, folder, model_config())
    for name, value in make_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_rows_of_another_program_are_known_by_name(tmp_path: Path) -> None:
    start = replace(model_config(), video_streams=streams("tiny.video", fingerprint=None))
    save_model(tmp_path, make_model(), start)
    load_start(make_model(), tmp_path, model_config())
    other = replace(model_config(), video_streams=streams("tiny.other"))
    with pytest.raises(
        FeatureMismatch, match=r"reads tiny\.video; .*video_streams gives tiny\.other"
    ):
        load_start(make_model(), tmp_path, other)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "qd_detr"}, CheckpointError, "holds a moment_detr, not a qd_detr"),
        ({"video_streams": streams("a", "b")}, FeatureMismatch, "reads tiny.video; .*gives a, b"),
        ({"text_streams": streams("tiny.text", fingerprint="cc")}, FeatureMismatch, "version"),
        ({"settings": {"hidden": 32, "ffn": 64}}, CheckpointError, "has 4 heads, .* is 8"),
    ],
)
def test_training_does_not_go_on_from_what_does_not_belong(
    folder: Path, change: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_start(make_model(), folder, replace(model_config(), **change))
