"""A published checkpoint, with encoders whose weights the user brings, searches a video file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrmodel.convert.encoders.convert import lock_again
from mrmodel.encoders.user_weights import WEIGHTS_VARIABLE
from mrmodel.errors import FeatureMismatch
from mrmodel.predict.predictor import Predictor
from tests.convert.published import run_import, save_official, with_widths
from tests.encoders.tiny_sets import make_clip, make_slowfast
from tests.golden_parity.test_models import GOLDEN, Case
from tests.video.fixtures import write_video

NAMED = ("--video-streams", "slowfast.video2304,clip_b32.video512")
NAMED += ("--text-streams", "clip_b32.text512")


def save_moment_detr(folder: Path) -> Path:
    case = Case(GOLDEN / "model_moment_detr/default.npz")
    weights = with_widths(case.weights, 2304 + 512 + 2, 512)
    return save_official(folder / "a.ckpt", weights, case.options | {"ctx_mode": "video_tef"})


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "weights"
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(root))
    make_clip(root, tmp_path)
    make_slowfast(root, tmp_path)
    return root


def test_a_published_model_searches_a_video(sets: Path, tmp_path: Path) -> None:
    run_import(save_moment_detr(tmp_path), tmp_path / "model", *NAMED, "--clip-len", "1")
    predictor = Predictor.load(tmp_path / "model", "cpu")
    video = predictor.encode(write_video(tmp_path / "v.mp4", 60))
    assert [store.dim for store in video.streams] == [2304, 512]
    (answer,) = predictor.search(video, ["the red dog"])
    assert len(answer.clip_scores) == 6
    assert all(0 <= one.start_s < one.end_s <= 6 for one in answer.moments)


def test_other_weights_are_refused(sets: Path, tmp_path: Path) -> None:
    run_import(save_moment_detr(tmp_path), tmp_path / "model", *NAMED)
    config = sets / "slowfast/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"compat": "fixed"}))
    lock_again("slowfast", sets)
    with pytest.raises(FeatureMismatch, match=r"slowfast\.video2304"):
        Predictor.load(tmp_path / "model", "cpu")


def test_without_weights_the_published_streams_still_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "nothing"))
    file = save_moment_detr(tmp_path)
    run_import(file, tmp_path / "model")
    streams = json.loads((tmp_path / "model/config.json").read_text())["video_streams"]
    assert [stream["fingerprint"] for stream in streams] == [None, None]
    message = run_import(file, tmp_path / "named", *NAMED, code=2)
    assert "mrmodel weights convert slowfast" in message
