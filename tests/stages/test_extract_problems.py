"""The stage's own command on a folder of good and bad videos."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mrmodel.data.feature_check import verify_store
from mrmodel.features.index import read_index
from mrmodel.features.store import FeatureStore
from mrmodel.presets import overlay, render
from tests.video.fixtures import rotate, write_audio, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five videos of 6 s: good, rotated, of variable rate, damaged in the middle; and audio."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "encoder_weights.lock").write_text('{"sets": {}}')
    videos = folder / "data/miniature/videos"
    videos.mkdir(parents=True)
    write_video(videos / "good.mp4", 60)
    rotate(write_video(videos / "rotated.mp4", 60, turned=1), 1)
    write_video(videos / "variable.mp4", 87, pts_ms=[*range(0, 3000, 50), *range(3000, 6240, 120)])
    damaged = write_video(videos / "damaged.mp4", 180, 30, gop=15)
    data = bytearray(damaged.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = np.random.default_rng(5).bytes(4096)
    damaged.write_bytes(data)
    write_audio(videos / "audio.mp4")
    return folder


def extract(folder, max_failed_share, workers):
    features = {"max_failed_share": max_failed_share, "workers": workers}
    (folder / "params.yaml").write_text(overlay(render("miniature"), {"features": features}))
    command = [sys.executable, "-m", "mrmodel.stages.extract", "--stream", "tiny.video"]
    return subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True)


def test_above_the_limit_the_stage_fails_and_names_the_video(folder):
    done = extract(folder, 0.19, workers=1)
    assert done.returncode != 0
    assert "1 of 5 videos gave no features, more than the allowed share 0.19" in done.stderr
    assert "audio: no_video_stream: streams in the file: audio" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "features/miniature/tiny.video").exists()


def test_below_it_the_stage_ends_and_reports_each(folder):
    done = extract(folder, 0.2, workers=2)
    assert done.returncode == 0, done.stderr
    assert "(1 partial, 1 failed)" in done.stderr
    assert "damaged: bad_packets" in done.stderr
    assert "audio: no_video_stream" in done.stderr
    store = folder / "features/miniature/tiny.video"
    entries = {row.entry.key: row.entry for row in read_index(store)}
    clips = int(6 / FeatureStore(store).info.clip_len_s)
    assert {key: (entry.status, entry.n_rows) for key, entry in entries.items()} == {
        "audio": ("failed", 0),
        "damaged": ("partial", clips),
        "good": ("ok", clips),
        "rotated": ("ok", clips),
        "variable": ("ok", clips),
    }
    assert json.loads(entries["damaged"].extra)["bad_packets"] > 0
    assert verify_store(store, None) == []
    # The file says how to turn it: upright it is the good one, but for its compression.
    rows, _ = FeatureStore(store).gather(["good", "rotated"])
    assert np.abs(rows[0].astype(float) - rows[1]).max() < 0.1
