"""The failure table of features.md section 4: what each kind of damage costs."""

import numpy as np
import pytest

from mrmodel.errors import VideoError
from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling

from .fixtures import read_number, write_audio, write_video

SAMPLING = FrameSampling(2, None)


def failure_code(path):
    source = FrameSource(path)
    with pytest.raises(VideoError) as caught:
        list(source.clips(1.0, SAMPLING))
    assert (source.report.status, source.report.n_clips) == ("failed", 0)
    assert source.report.reason == caught.value.code
    assert str(path) in str(caught.value)
    return caught.value.code


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def overwrite(path, start, length):
    data = bytearray(path.read_bytes())
    data[start : start + length] = np.random.default_rng(5).bytes(length)
    path.write_bytes(data)
    return path


def test_missing_file(tmp_path):
    assert failure_code(tmp_path / "none.mp4") == "not_found"


def test_folder(tmp_path):
    assert failure_code(tmp_path) == "unreadable"


def test_empty_file(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    assert failure_code(path) == "invalid_data"


def test_garbage(tmp_path):
    path = tmp_path / "garbage.mp4"
    path.write_bytes(np.random.default_rng(0).bytes(20_000))
    assert failure_code(path) == "invalid_data"


def test_audio_only(tmp_path):
    assert failure_code(write_audio(tmp_path / "a.mp4")) == "no_video_stream"


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_header_without_frames(tmp_path, container):
    code = failure_code(write_video(tmp_path / f"z.{container}", 0))
    assert code in {"no_frames", "no_video_stream", "invalid_data"}


def test_lost_index(tmp_path):
    # Plain mp4 keeps its index at the end: a broken download has none.
    assert failure_code(cut(write_video(tmp_path / "t.mp4", 60), 0.6)) == "invalid_data"


def test_truncated_after_the_index(tmp_path):
    path = write_video(tmp_path / "f.mp4", 150, 30, gop=15, options={"movflags": "faststart"})
    source = FrameSource(cut(path, 0.6))
    clips = list(source.clips(1.0, SAMPLING))
    report = source.report
    assert (report.status, report.reason) == ("partial", "truncated")
    assert 2.0 < report.duration_s < 3.5
    assert report.decoded_s == pytest.approx(report.duration_s, abs=0.1)
    assert len(clips) == report.n_clips == int(report.duration_s)
    assert [read_number(clip.frames[0]) for clip in clips] == [7, 37, 67][: len(clips)]


def test_corrupted_middle_costs_its_own_frames_only(tmp_path):
    path = write_video(tmp_path / "c.mp4", 150, 30, gop=15)
    source = FrameSource(overwrite(path, path.stat().st_size // 2, 4096))
    clips = list(source.clips(1.0, SAMPLING))
    report = source.report
    assert (report.status, report.reason) == ("partial", "bad_packets")
    assert report.bad_packets >= 1
    assert report.duration_s == pytest.approx(5.0)
    assert 4.0 < report.decoded_s < 5.0
    shown = [[read_number(frame) for frame in clip.frames] for clip in clips]
    assert shown[0] == [7, 22]
    assert shown[-1] == [127, 142], "decoding goes on behind the damage"


def test_clips_without_a_frame_repeat_the_one_before(tmp_path):
    # Matroska frames last 100 ms; between 1.0 and 3.0 s there is none.
    stamps = [*range(0, 1000, 100), *range(3000, 4000, 100)]
    source = FrameSource(write_video(tmp_path / "gap.mkv", 20, pts_ms=stamps))
    clips = list(source.clips(1.0, SAMPLING))
    assert [clip.interpolated for clip in clips] == [False, True, True, False]
    assert [read_number(clip.frames[0]) for clip in clips] == [2, 9, 9, 12]
    assert (source.report.status, source.report.reason) == ("partial", "missing_frames")
    assert source.report.n_interpolated == 2
    assert source.report.decoded_s == pytest.approx(2.0)


def test_one_missing_clip_in_twenty_is_still_ok(tmp_path):
    stamps = [*range(0, 5000, 100), *range(6000, 20000, 100)]
    path = write_video(tmp_path / "gap.mkv", len(stamps), pts_ms=stamps)
    source = FrameSource(path)
    assert sum(clip.interpolated for clip in source.clips(1.0, SAMPLING)) == 1
    assert source.report.status == "ok"


def test_damage_anywhere_never_escapes_as_another_error(tmp_path):
    options = {"movflags": "faststart"}
    whole = write_video(tmp_path / "w.mp4", 60, 30, gop=15, options=options).read_bytes()
    rng = np.random.default_rng(11)
    for trial in range(40):
        data = bytearray(whole)
        reach = len(data) - 64 if trial % 2 else 3000  # anywhere, or in the header
        for _ in range(4):
            start = int(rng.integers(0, reach))
            data[start : start + 64] = rng.bytes(64)
        path = tmp_path / f"{trial}.mp4"
        path.write_bytes(data)
        source = FrameSource(path)
        try:
            clips = list(source.clips(1.0, FrameSampling(1, (32, 32))))
        except VideoError:
            assert source.report.status == "failed"
        else:
            assert len(clips) == source.report.n_clips >= 1
