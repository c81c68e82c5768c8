"""Frames that are left out: everything else is as if all had been decoded."""

from dataclasses import asdict

import av
import numpy as np
import pytest

from mrmodel.video import skipping
from mrmodel.video.decoder import Decoder, VideoLimits
from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling
from tests.video.fixtures import write_video

# Three non-reference frames in four, and pyramids in which some of them are referred to.
B_FRAMES = {"bf": "3", "b_strategy": "0", "b-pyramid": "none"}
PYRAMID = {"bf": "5", "b_strategy": "0", "b-pyramid": "normal", "preset": "veryfast"}


def read(path, clip_len_s, sampling, monkeypatch, *, all_frames=False):
    """Clips and report, with every frame decoded or not."""
    with monkeypatch.context() as patch:
        if all_frames:
            patch.setattr(skipping, "_CODECS", frozenset())
        source = FrameSource(path)
        return list(source.clips(clip_len_s, sampling)), source.report


def assert_equal(got, expected):
    assert asdict(got[1]) == asdict(expected[1])
    assert len(got[0]) == len(expected[0]) > 0
    for clip, other in zip(got[0], expected[0], strict=True):
        assert (clip.index, clip.start_s, clip.interpolated) == (
            *(other.index, other.start_s),
            other.interpolated,
        )
        np.testing.assert_array_equal(clip.frames, other.frames)


def decoded(path, wanted):
    """Share of the frames that came with a picture."""
    frames = list(Decoder(path, VideoLimits()).frames(wanted))
    return sum(frame.picture is not None for frame in frames) / len(frames)


@pytest.mark.parametrize("encoding", [B_FRAMES, PYRAMID], ids=["plain", "pyramid"])
@pytest.mark.parametrize(
    ("sampling", "clip_len_s"),
    [
        (FrameSampling(4, None), 2.0),
        (FrameSampling(1, (80, 48), "ffmpeg_fps"), 1.0),
        (FrameSampling(32, (80, 48), "hero"), 2.0),
        (FrameSampling(3, None), 0.7),
        (FrameSampling(2, None), 0.05),
    ],
)
@pytest.mark.parametrize("fps", [24, 30])
def test_clips_and_report_are_those_of_all_frames(
    tmp_path, monkeypatch, encoding, sampling, clip_len_s, fps
):
    path = write_video(tmp_path / "v.mp4", 7 * fps, fps=fps, gop=40, encoding=encoding)
    some = read(path, clip_len_s, sampling, monkeypatch)
    assert_equal(some, read(path, clip_len_s, sampling, monkeypatch, all_frames=True))


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_variable_frame_rate_and_containers(tmp_path, monkeypatch, container):
    rng = np.random.default_rng(3)
    stamps = np.cumsum(rng.choice([20, 40, 130, 700], 160)).tolist()
    path = tmp_path / f"v.{container}"
    write_video(path, 160, pts_ms=stamps, encoding=B_FRAMES)
    sampling = FrameSampling(2, None)
    some = read(path, 1.0, sampling, monkeypatch)
    assert_equal(some, read(path, 1.0, sampling, monkeypatch, all_frames=True))


def test_what_nobody_looks_at_is_left_out(tmp_path):
    path = write_video(tmp_path / "v.mp4", 300, fps=30, encoding=B_FRAMES)
    assert decoded(path, lambda _start, _end: True) == 1
    assert decoded(path, lambda _start, _end: False) < 0.35
    sampling = FrameSampling(4, None)
    share = decoded(path, lambda start, end: sampling.has_target(start, end, 2.0))
    assert 0.25 < share < 0.4


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": "mpeg4", "encoding": {"bf": "2"}},
        {"encoding": {**B_FRAMES, "x264-params": "tff=1"}},
    ],
    ids=["another codec", "interlaced"],
)
def test_where_it_would_not_be_safe_nothing_is_left_out(tmp_path, changes):
    path = write_video(tmp_path / "v.mkv", 90, fps=30, **changes)
    assert decoded(path, lambda _start, _end: False) == 1


@pytest.mark.parametrize("encoding", [B_FRAMES, PYRAMID], ids=["plain", "pyramid"])
@pytest.mark.parametrize("joined", [2, 6])
def test_frames_without_time_stamps_end_it(tmp_path, monkeypatch, encoding, joined):
    """A transport stream may say the time of the first of several frames only."""
    plain = write_video(tmp_path / "plain.ts", 300, fps=30, encoding=encoding)
    path = tmp_path / "joined.ts"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        for first in range(0, len(packets), joined):
            group = packets[first : first + joined]
            packet = av.Packet(b"".join(map(bytes, group)))
            packet.pts, packet.dts = group[0].pts, group[0].dts
            packet.time_base, packet.stream = stream.time_base, copy
            target.mux(packet)
    sampling = FrameSampling(2, None)
    some = read(path, 1.0, sampling, monkeypatch)
    assert_equal(some, read(path, 1.0, sampling, monkeypatch, all_frames=True))


@pytest.mark.parametrize("place", [0.2, 0.45, 0.7])
def test_a_damaged_file_gives_its_clips(tmp_path, monkeypatch, place):
    path = write_video(tmp_path / "v.ts", 150, fps=10, gop=20, encoding=B_FRAMES)
    data = bytearray(path.read_bytes())
    middle = int(place * len(data))
    data[middle : middle + 3_000] = np.random.default_rng(1).bytes(3_000)
    path.write_bytes(data)
    sampling = FrameSampling(2, None)
    clips, report = read(path, 2.0, sampling, monkeypatch)
    everything, full = read(path, 2.0, sampling, monkeypatch, all_frames=True)
    assert [clip.index for clip in clips] == [clip.index for clip in everything] == list(range(7))
    assert report.duration_s == full.duration_s
    # Damage to a frame that nobody looks at is none.
    assert report.bad_packets <= full.bad_packets
    # Far from the damage nothing is different.
    equal = [np.array_equal(a.frames, b.frames) for a, b in zip(clips, everything, strict=True)]
    assert sum(equal) >= 5


def test_has_target_never_misses_what_is_picked():
    rng = np.random.default_rng(0)
    for rule, count in (("middle", 4), ("ffmpeg_fps", 1), ("hero", 32)):
        sampling = FrameSampling(count, None, rule)
        for clip_len_s in (0.5, 1.0, 2.0, 1.37):
            starts = rng.uniform(0, 30, 200)
            for start, length in zip(starts, rng.uniform(0, 0.2, 200), strict=True):
                picked = any(
                    not sampling.is_past(start, target) and sampling.is_past(start + length, target)
                    for clip in range(int(start / clip_len_s) + 3)
                    for slot in range(count)
                    for target in [sampling.target_s(clip, slot, clip_len_s, 25.0)]
                )
                assert sampling.has_target(start, start + length, clip_len_s, 25.0) or not picked
