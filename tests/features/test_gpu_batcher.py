"""One encoder, many decoding processes: the same rows as with an encoder in each, and full batches.

The encoder's batches are of four clips, a slot is two clips large.
"""

import os
import time

import numpy as np
import pytest

from mrmodel.data.feature_check import verify_store
from mrmodel.errors import FeatureError, WeightsError
from mrmodel.features.extraction import gpu_batcher
from mrmodel.features.extraction.extract import extract_videos
from mrmodel.features.extraction.job_runner import ExtractionSettings
from mrmodel.features.extraction.worker_pool import SharedSlots
from mrmodel.features.store import FeatureStore
from tests.features.encoders import Slow, Together, register_all
from tests.features.test_extract import extract, files_of, run_and_kill
from tests.video.fixtures import write_audio, write_video

CLIP_BYTES = 2 * 96 * 160 * 3

register_all()


@pytest.fixture(autouse=True)
def small_slots(monkeypatch):
    monkeypatch.setattr(gpu_batcher, "_SLOT_BYTES", 2 * CLIP_BYTES)
    Together.given.clear()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight videos of 1 to 5 clips of 2 s, 12 in all; only `long` has a fourth."""
    folder = tmp_path_factory.mktemp("videos")
    lengths = {"a": 20, "b": 25, "c": 30, "d": 20, "e": 30, "f": 22, "g": 20, "long": 100}
    return {vid: write_video(folder / f"{vid}.mp4", n) for vid, n in lengths.items()}


@pytest.fixture(scope="module")
def undisturbed(videos, tmp_path_factory):
    """The store as workers with an encoder each make it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    extract(videos, "test.FrameNumbers", folder)
    return folder / "store"


def rows_and_index(store):
    """Bytes of all files but the manifest, which names the encoder."""
    return {name: content for name, content in files_of(store).items() if name != "manifest.json"}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("slot_clips", [1, 2, 50])
def test_bytes_are_those_of_an_encoder_in_each_process(
    videos, undisturbed, tmp_path, monkeypatch, workers, slot_clips
):
    monkeypatch.setattr(gpu_batcher, "_SLOT_BYTES", slot_clips * CLIP_BYTES)
    summary = extract(videos, "test.Together", tmp_path, workers=workers)
    assert (summary.n_ok, summary.n_rows) == (8, 12)
    assert rows_and_index(tmp_path / "store") == rows_and_index(undisturbed)
    assert verify_store(tmp_path / "store") == []
    assert 0 < summary.decode_wait_ratio < 1


def test_videos_share_batches(videos, tmp_path):
    extract(videos, "test.Together", tmp_path, workers=2)
    assert Together.given == [4, 4, 4]


def test_the_last_batch_may_be_short(videos, tmp_path):
    extract({vid: videos[vid] for vid in ("long", "a")}, "test.Together", tmp_path)
    assert Together.given == [4, 2]


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ("test.DeadlyDecoding", "worker process died 2 times (signal 11)"),
        ("test.HangingDecoding", "took longer than the time limit"),
        ("test.TogetherConfused", "IndexError: a defect"),
        ("test.TogetherNotANumber", "row 3 holds NaN, infinity, or a value beyond float16"),
    ],
)
def test_one_bad_video_costs_one_video(videos, undisturbed, tmp_path, encoder, reason):
    # Clips of 1 s show frames 10 c + 2 and 10 c + 7: number 37 and a fourth clip are in `long`
    # alone, but for the videos of 3 s.
    chosen = {vid: path for vid, path in videos.items() if vid not in "ce"}
    settings = ExtractionSettings(
        work_dir=tmp_path / "work", workers=1, max_failed_share=0.2, timeout_s=2.5
    )
    summary = extract_videos(chosen, encoder, 1.0, tmp_path / "store", settings)
    assert summary.problems == {"long": reason}
    assert (summary.n_ok, summary.n_failed) == (5, 1)
    block, mask = FeatureStore(tmp_path / "store").gather(["a", "b"])
    assert block[..., :2][mask].tolist() == [[2, 7], [12, 17]] * 2


def test_a_crash_that_does_not_come_back_costs_nothing(videos, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("MRMODEL_TEST_MARK", str(tmp_path / "mark"))
    summary = extract(videos, "test.DeadlyDecodingOnce", tmp_path)
    assert (tmp_path / "mark").exists()
    assert (summary.n_ok, summary.n_failed) == (8, 0)
    # The crash came after parts of the video had been encoded: they are not stored twice.
    assert rows_and_index(tmp_path / "store") == rows_and_index(undisturbed)


def test_missing_weights_stop_the_extraction(videos, tmp_path):
    with pytest.raises(WeightsError, match="weights are missing"):
        extract(videos, "test.TogetherWithoutWeights", tmp_path, max_failed_share=1.0)


def test_damaged_videos_are_reported(videos, tmp_path):
    damaged = {"audio": write_audio(tmp_path / "audio.mp4"), "fine": videos["a"]}
    summary = extract(damaged, "test.Together", tmp_path, max_failed_share=0.5)
    assert (summary.n_ok, summary.n_failed) == (1, 1)
    assert summary.problems["audio"].startswith("no_video_stream")


def test_what_waits_for_a_slow_encoder_is_bounded(tmp_path, monkeypatch):
    """Forty clips; nobody decodes more than two batches and the slots hold, nor is late for it."""
    monkeypatch.setenv("MRMODEL_TEST_MARK", str(tmp_path / "mark"))
    Slow.seen.clear()
    videos = {"long": write_video(tmp_path / "long.mp4", 40 * 20)}
    summary = extract(videos, "test.Slow", tmp_path, timeout_s=1.5)
    assert summary.problems == {}
    assert summary.n_rows == 40
    # Beyond what is encoded: this batch, the next one, and two slots; then it has to wait.
    ahead = [seen - 4 * batch for batch, seen in enumerate(Slow.seen)]
    assert ahead[0] == 4 + 4 + 2 * 2
    assert max(ahead) <= 12


def test_many_videos_may_wait_for_a_slow_encoder(tmp_path, monkeypatch):
    """Three workers are faster than the encoder; the second video of each begins behind parts."""
    monkeypatch.setenv("MRMODEL_TEST_MARK", str(tmp_path / "mark"))
    path = write_video(tmp_path / "v.mp4", 10 * 20)
    videos = {f"v{number}": path for number in range(6)}
    summary = extract(videos, "test.Slow", tmp_path, workers=3, timeout_s=1.5)
    assert summary.problems == {}
    assert summary.n_rows == 60


def test_a_death_that_is_noticed_late_is_a_death_all_the_same(videos, tmp_path, monkeypatch):
    digest = gpu_batcher.BatchingEncoder._digest

    def slowly(self):
        time.sleep(0.2)  # Meanwhile the worker sends its last part, and dies.
        return digest(self)

    monkeypatch.setattr(gpu_batcher.BatchingEncoder, "_digest", slowly)
    chosen = {vid: videos[vid] for vid in ("a", "long", "b")}
    summary = extract(chosen, "test.DeadlyDecoding", tmp_path, max_failed_share=0.4)
    assert summary.problems == {"long": "worker process died 2 times (signal 11)"}
    assert summary.n_ok == 2


def test_an_encoder_that_loses_rows_is_named(videos, tmp_path):
    with pytest.raises(FeatureError, match=r"numbers gave \d rows of \d clips, not one each"):
        extract(videos, "test.Careless", tmp_path)


def test_a_killed_extraction_continues_to_equal_bytes(videos, tmp_path):
    many = {f"{vid}{copy}": path for vid, path in videos.items() for copy in range(12)}
    extract(many, "test.Together", tmp_path / "whole")
    run_and_kill(many, "test.Together", tmp_path, pieces=4)
    summary = extract(many, "test.Together", tmp_path)
    assert 4 <= summary.n_resumed < len(many)
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole" / "store")


def test_slots_are_memory_of_both_processes():
    slots = SharedSlots.create(6)
    try:
        slots.array(1, (2, 3))[:] = [[1, 2, 3], [4, 5, 6]]
        again = SharedSlots(os.dup(slots._fd), 6)
        np.testing.assert_array_equal(again.array(1, (2, 3)), [[1, 2, 3], [4, 5, 6]])
        again.array(0, (1,))[0] = 9
        assert slots.array(0, (6,)).tolist() == [9, 0, 0, 0, 0, 0]
        again.close()
    finally:
        slots.close()
        slots.close()  # as after a death, which closes them too
