"""The stage's own command with encoders whose weights a user brings, on rendered videos."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mrmodel.components import ENCODERS
from mrmodel.data.feature_check import verify_store
from mrmodel.encoders.user_weights import PUBLISHED, WEIGHTS_VARIABLE
from mrmodel.features.keys import text_key
from mrmodel.features.store import FeatureStore
from mrmodel.presets import overlay, render
from tests.video.fixtures import write_video

from .tiny_sets import make_all

STREAMS = [name for name in ENCODERS if name.partition(".")[0] in PUBLISHED]
# One always runs; the others, which differ in the network only, are long proofs.
QUICK = ("clip_b32.video512",)
QUERY = "The red dog!"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with params.yaml, two videos, one query and no captions; and weights beside it."""
    folder = tmp_path_factory.mktemp("project")
    make_all(folder)
    features = {"video_streams": STREAMS[:1], "text_streams": STREAMS[1:2], "clip_len_s": 1.0}
    (folder / "params.yaml").write_text(overlay(render("miniature"), {"features": features}))
    (folder / "encoder_weights.lock").write_text('{"sets": {}}')
    videos = folder / "data/miniature/videos"
    videos.mkdir(parents=True)
    for number, fps in enumerate((10, 30)):
        write_video(videos / f"v{number}.mp4", 2 * fps, fps=fps)
    row = {"qid": 1, "query": QUERY, "vid": "v0", "duration": 2.0, "relevant_windows": [[0, 1]]}
    row |= {"relevant_clip_ids": [0], "saliency_scores": [[4, 4, 4]]}
    (videos.parent / "train.jsonl").write_text(json.dumps(row) + "\n")
    for empty in ("val", "test", "captions"):
        (videos.parent / f"{empty}.jsonl").write_text("")
    return folder


@pytest.mark.parametrize(
    "stream",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STREAMS],
)
def test_the_stage_extracts_a_stream(project, stream):
    environment = os.environ | {WEIGHTS_VARIABLE: str(project / "weights")}
    command = [sys.executable, "-m", "mrmodel.stages.extract", "--stream", stream]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = project / "features/miniature" / stream
    assert verify_store(folder, None) == []
    store = FeatureStore(folder)
    encoder = ENCODERS.get(stream)
    assert store.info.dim == encoder.dim
    assert store.info.fingerprint["weights"]
    if encoder.modality == "video":
        keys, counts = ["v0", "v1"], [2, 2]
    else:  # four tokens, and what is no token
        keys, counts = [text_key(QUERY)], [4 + (1 if encoder.layout == "sentence, tokens" else 2)]
    rows, mask = store.gather(keys)
    assert mask.sum(axis=1).tolist() == counts
    assert np.abs(rows[mask].astype(float)).max(axis=-1).min() > 0
