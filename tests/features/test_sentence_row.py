"""Only a sentence vector is compared with clips: InterVid-MR and zero-shot refuse the rest."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from mrmodel.config.schema import parse_config
from mrmodel.errors import FeatureError
from mrmodel.features.index import IndexEntry
from mrmodel.features.keys import text_key
from mrmodel.features.manifest import StreamInfo, has_sentence_row
from mrmodel.features.store import FeatureStore
from mrmodel.features.writer import FeatureWriter
from mrmodel.presets import render
from mrmodel.stages.evaluate import zero_shot_predictions
from mrmodel.stages.intervid import open_aligned
from mrmodel.stages.paths import Paths
from mrmodel.types import Annotation

QUERY = "a dog"


def write_store(folder, modality, fingerprint):
    clips = modality == "video"
    info = StreamInfo(
        stream=folder.name,
        dim=4,
        modality=modality,
        keyed_by="vid" if clips else "text",
        clip_len_s=2.0 if clips else None,
        fingerprint=fingerprint,
    )
    with FeatureWriter(folder, info) as writer:
        rows = np.eye(3, 4, dtype=np.float16)
        writer.add(IndexEntry("v0" if clips else text_key(QUERY), 3), rows)
    return FeatureStore(folder)


@pytest.fixture
def config():
    return parse_config(yaml.safe_load(render("miniature")))


@pytest.mark.parametrize(
    ("fingerprint", "comparable"),
    [
        ({"encoder": "embedded.text"}, True),
        ({"layout": "sentence, tokens"}, True),
        ({"layout": "sentence, tokens, end"}, True),
        ({"layout": "start, tokens, end"}, False),
        ({"imported": "clip_b32.text512"}, False),
    ],
)
def test_rows_that_cannot_be_compared_are_not(tmp_path, config, fingerprint, comparable):
    paths = Paths(config, tmp_path)
    video = write_store(paths.stream("tiny.video"), "video", {})
    text = write_store(paths.stream("tiny.text"), "text", fingerprint)
    assert has_sentence_row(text.info) == comparable
    data = SimpleNamespace(
        annotations=[Annotation(1, QUERY, "v0", 6.0)],
        builder=SimpleNamespace(video=[video], text=[text]),
    )
    assert bool(zero_shot_predictions(config, data)) == comparable
    if comparable:
        assert open_aligned(config, paths).texts.name == text.name
    else:
        with pytest.raises(FeatureError, match=r"features\.text_streams: tiny\.text"):
            open_aligned(config, paths)
