import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mrmodel.data.feature_check import verify_store
from mrmodel.encoders.base import build_encoder
from mrmodel.errors import FeatureError, UnknownNameError
from mrmodel.features.extraction.encode import encode_texts, encode_video
from mrmodel.features.extraction.extract import extract_texts, extract_videos
from mrmodel.features.extraction.job_runner import ExtractionSettings
from mrmodel.features.index import read_index
from mrmodel.features.keys import text_key
from mrmodel.features.manifest import stream_fingerprint
from mrmodel.features.store import FeatureStore, MemoryStore
from tests.features.encoders import FrameNumbers, WordLengths, register_all
from tests.reporters import RecordingReporter
from tests.video.fixtures import write_audio, write_video

ROOT = Path(__file__).resolve().parents[2]

register_all()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight videos of 1 to 5 clips of 2 s; only `long` reaches frame 37."""
    folder = tmp_path_factory.mktemp("videos")
    lengths = {"a": 20, "b": 25, "c": 30, "d": 20, "e": 30, "f": 22, "g": 20, "long": 100}
    return {vid: write_video(folder / f"{vid}.mp4", n) for vid, n in lengths.items()}


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def extract(videos, encoder, folder, workers=1, **settings):
    settings = ExtractionSettings(work_dir=folder / "work", workers=workers, **settings)
    return extract_videos(videos, encoder, 2.0, folder / "store", settings)


@pytest.fixture(scope="module")
def undisturbed(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    summary = extract(videos, "test.FrameNumbers", folder)
    return folder / "store", summary


def test_rows_are_those_of_the_frames(videos, undisturbed):
    folder, summary = undisturbed
    assert (summary.n_items, summary.n_ok, summary.n_failed, summary.n_rows) == (8, 8, 0, 12)
    assert summary.problems == {}
    assert 0 < summary.decode_wait_ratio < 1
    assert summary.rows_per_s > 0
    block, _ = FeatureStore(folder).gather(["long", "a"])
    assert block[0, :, :2].tolist() == [[c * 20 + 5, c * 20 + 15] for c in range(5)]
    assert block[1, 0, :2].tolist() == [5, 15]
    entries = {row.entry.key: row.entry for row in read_index(folder)}
    assert entries["b"].duration_s == pytest.approx(2.5)
    assert json.loads(entries["b"].extra)["width"] == 160
    assert len(entries["b"].src_sha256) == 64
    assert verify_store(folder) == []


def test_bytes_do_not_depend_on_workers_or_order(videos, undisturbed, tmp_path):
    shuffled = dict(sorted(videos.items(), reverse=True))
    extract(shuffled, "test.FrameNumbers", tmp_path, workers=2)
    assert files_of(tmp_path / "store") == files_of(undisturbed[0])
    assert not (tmp_path / "work").exists()


SCRIPT = """
import sys, json
from pathlib import Path
from mrmodel.features.extraction.extract import extract_videos
from mrmodel.features.extraction.job_runner import ExtractionSettings
from tests.features.encoders import register_all

if __name__ == "__main__":
    register_all()
    videos = {vid: Path(path) for vid, path in json.loads(sys.argv[1]).items()}
    folder = Path(sys.argv[2])
    settings = ExtractionSettings(work_dir=folder / "work", workers=2)
    extract_videos(videos, sys.argv[3], 2.0, folder / "store", settings)
"""


def run_and_kill(videos, encoder, folder, pieces):
    """Start an extraction in a process of its own and SIGKILL it after so many pieces."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    paths = json.dumps({vid: str(path) for vid, path in videos.items()})
    command = [sys.executable, str(script), paths, str(folder), encoder]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while len(list((folder / "work").glob("??/*.json"))) < pieces:
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def many(videos):
    """Thirty videos: so many that even the tiny encoder can be caught at work."""
    return {f"{vid}{copy}": path for vid, path in videos.items() if vid < "g" for copy in range(5)}


def test_a_killed_extraction_continues_to_equal_bytes(many, tmp_path):
    extract(many, "tiny.video", tmp_path / "whole")
    run_and_kill(many, "tiny.video", tmp_path, pieces=4)
    summary = extract(many, "tiny.video", tmp_path)
    assert 4 <= summary.n_resumed < 30
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole" / "store")
    assert verify_store(tmp_path / "store") == []


def test_registered_encoders_serve_what_they_stored(videos, tmp_path):
    extract(videos, "tiny.video", tmp_path / "video")
    settings = ExtractionSettings(work_dir=tmp_path / "work", workers=1)
    queries = ["A red ball rolls.", "two dogs", "A red  ball rolls."]
    extract_texts(queries, "tiny.text", tmp_path / "text", settings)
    video, text = FeatureStore(tmp_path / "video" / "store"), FeatureStore(tmp_path / "text")
    rows = encode_video(videos["long"], build_encoder("tiny.video"), 2.0).rows
    tokens = encode_texts([" A red ball rolls. "], build_encoder("tiny.text"))[0]
    np.testing.assert_array_equal(video.gather(["long"])[0][0], rows)
    np.testing.assert_array_equal(text.gather([text_key(queries[0])])[0][0], tokens)
    made = stream_fingerprint(build_encoder("tiny.video").fingerprint(), 2.0)
    assert video.info.fingerprint == made


def test_pieces_of_changed_files_or_settings_are_made_anew(videos, tmp_path):
    some = {vid: tmp_path / f"{vid}.mp4" for vid in "ab"}
    for vid, path in some.items():
        path.write_bytes(videos[vid].read_bytes())
    missing = {**some, "z": tmp_path / "z.mp4"}
    with pytest.raises(FeatureError, match=r"1 of 3 videos gave no features.*z: not_found"):
        extract(missing, "test.FrameNumbers", tmp_path)
    some["a"].write_bytes(videos["long"].read_bytes())
    summary = extract(some, "test.FrameNumbers", tmp_path)
    assert (summary.n_resumed, summary.n_rows) == (1, 6)
    with pytest.raises(FeatureError, match="z: not_found"):
        extract(missing, "test.FrameNumbers", tmp_path)
    summary = extract(some, "test.Confused", tmp_path)
    assert summary.n_resumed == 0


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ("test.Deadly", "worker process died 2 times (signal 11)"),
        ("test.Hanging", "took longer than the time limit"),
        ("test.Confused", "IndexError: a defect"),
        ("test.NotANumber", "row 3 holds NaN, infinity, or a value beyond float16"),
    ],
)
def test_one_bad_video_costs_one_video(videos, tmp_path, encoder, reason):
    # Clips of 1 s show frames 10 c + 2 and 10 c + 7: number 37 is seen in `long` alone.
    settings = ExtractionSettings(
        work_dir=tmp_path / "work", workers=1, max_failed_share=0.2, timeout_s=2.5
    )
    summary = extract_videos(videos, encoder, 1.0, tmp_path / "store", settings)
    assert summary.n_failed == 1
    assert summary.n_ok == 7
    assert summary.problems == {"long": reason}
    store = FeatureStore(tmp_path / "store")
    assert store.has_failed("long_0.0_2.0")
    assert verify_store(tmp_path / "store") == []


def test_a_crash_that_does_not_come_back_costs_nothing(videos, tmp_path, monkeypatch):
    monkeypatch.setenv("MRMODEL_TEST_MARK", str(tmp_path / "mark"))
    summary = extract(videos, "test.DeadlyOnce", tmp_path)
    assert (summary.n_ok, summary.n_failed) == (8, 0)


def test_damaged_videos_are_reported(videos, tmp_path):
    damaged = {
        "audio": write_audio(tmp_path / "audio.mp4"),
        "empty": tmp_path / "empty.mp4",
        "fine": videos["a"],
    }
    damaged["empty"].touch()
    with pytest.raises(FeatureError) as caught:
        extract(damaged, "test.FrameNumbers", tmp_path)
    assert "2 of 3 videos gave no features" in str(caught.value)
    assert "audio: no_video_stream" in str(caught.value)
    assert not (tmp_path / "store").exists()
    summary = extract(damaged, "test.FrameNumbers", tmp_path, max_failed_share=0.7)
    assert (summary.n_resumed, summary.n_ok, summary.n_failed) == (1, 1, 2)


def test_served_rows_equal_stored_rows(videos, undisturbed):
    stored = FeatureStore(undisturbed[0]).gather(["long"])[0]
    encoded = encode_video(videos["long"], FrameNumbers(), 2.0)
    served = MemoryStore("served", {"long": encoded.rows}, 2.0).gather(["long"])[0]
    np.testing.assert_array_equal(stored, served)


def test_texts(tmp_path):
    texts = ["a red  ball", "a red ball", "two dogs run", "one", *(f"n {i}" for i in range(600))]
    summaries, reporter = [], RecordingReporter()
    for name, order in (("one", texts), ("two", texts[::-1])):
        settings = ExtractionSettings(work_dir=tmp_path / "work", workers=2)
        folder = tmp_path / name
        summaries.append(extract_texts(order, "test.WordLengths", folder, settings, reporter))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert summaries[0].n_items == 603
    assert summaries[0].n_rows == 4 + 4 + 2 + 600 * 3
    store = FeatureStore(tmp_path / "one")
    block, mask = store.gather([text_key("two dogs run "), text_key("one")])
    assert block[0].tolist() == [[3, 0], [3, 1], [4, 1], [3, 1]]
    assert mask.sum(axis=1).tolist() == [4, 2]
    assert store.info.keyed_by == "text"
    assert verify_store(tmp_path / "one") == []


def test_wrong_use(videos, tmp_path):
    settings = ExtractionSettings(work_dir=tmp_path / "work", workers=1)
    with pytest.raises(FeatureError, match="a text is empty"):
        extract_texts(["good", "  "], "test.WordLengths", tmp_path / "store", settings)
    with pytest.raises(FeatureError, match="encodes text, not video"):
        extract(videos, "test.WordLengths", tmp_path)
    with pytest.raises(FeatureError, match="weights are missing"):
        extract(videos, "test.WithoutWeights", tmp_path, max_failed_share=1.0)
    with pytest.raises(UnknownNameError):
        extract(videos, "test.wordlength", tmp_path)
    assert WordLengths.modality == "text"
