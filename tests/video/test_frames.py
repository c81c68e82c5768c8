"""Which frames come out of a healthy file, read back from the numbers burnt into them."""

import av
import numpy as np
import pytest

from mrmodel.errors import VideoError
from mrmodel.video.decoder import VideoLimits
from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling

from .fixtures import read_number, rotate, write_video

VARIABLE_MS = [*range(0, 600, 20), *range(600, 3600, 100)]  # 50 frames/s, then 10


def numbers(source, clip_len_s=1.0, sampling=None):
    clips = source.clips(clip_len_s, sampling or FrameSampling(2, None))
    return [[read_number(frame) for frame in clip.frames] for clip in clips]


def test_middle_frames_of_each_clip_and_the_tail_is_dropped(tmp_path):
    source = FrameSource(write_video(tmp_path / "a.mp4", 45))
    assert numbers(source) == [[2, 7], [12, 17], [22, 27], [32, 37]]
    report = source.report
    assert (report.status, report.reason, report.n_clips) == ("ok", "", 4)
    assert report.duration_s == pytest.approx(4.5)
    assert report.decoded_s == pytest.approx(4.5)
    assert (report.bad_packets, report.n_interpolated) == (0, 0)
    assert (report.width, report.height) == (160, 96)


def test_a_frame_exactly_on_the_target_is_taken(tmp_path):
    source = FrameSource(write_video(tmp_path / "a.mp4", 20))
    assert numbers(source, 1.0, FrameSampling(1, None)) == [[5], [15]]


def test_a_video_shorter_than_a_clip_gives_one_clip(tmp_path):
    source = FrameSource(write_video(tmp_path / "a.mp4", 3))
    assert numbers(source, 2.0) == [[2, 2]]
    assert source.report.status == "ok"


def test_clip_positions(tmp_path):
    clips = list(
        FrameSource(write_video(tmp_path / "a.mp4", 30)).clips(1.0, FrameSampling(3, (80, 48)))
    )
    assert [(clip.index, clip.start_s) for clip in clips] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert all(clip.frames.shape == (3, 48, 80, 3) for clip in clips)
    assert all(clip.frames.dtype == np.uint8 for clip in clips)
    assert not any(clip.interpolated for clip in clips)


@pytest.mark.parametrize("resize", ["bicubic", "bilinear", "area"])
def test_resized_pictures_keep_their_content(tmp_path, resize):
    path = write_video(tmp_path / "a.mp4", 10)
    large = FrameSampling(2, (320, 192), resize=resize)
    assert numbers(FrameSource(path), 1.0, large) == [[2, 7]]


def test_two_readings_are_equal(tmp_path):
    path = write_video(tmp_path / "a.mp4", 20)
    sampling = FrameSampling(2, (112, 112))
    first, second = (list(FrameSource(path).clips(1.0, sampling)) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.frames, two.frames)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_variable_frame_rate_is_sampled_by_time(tmp_path, container):
    path = write_video(tmp_path / f"v.{container}", 60, pts_ms=VARIABLE_MS)
    source = FrameSource(path)
    # 250 ms is frame 12 (240 ms), 750 ms frame 31 (700 ms), then one frame every 100 ms.
    assert numbers(source) == [[12, 31], [36, 41], [46, 51]]
    assert source.report.duration_s == pytest.approx(3.6)
    assert source.report.status == "ok"


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_start_offset_is_subtracted(tmp_path, container):
    stamps = [5000 + 100 * number for number in range(30)]
    source = FrameSource(write_video(tmp_path / f"o.{container}", 30, pts_ms=stamps))
    assert numbers(source) == [[2, 7], [12, 17], [22, 27]]
    assert source.report.status == "ok"
    assert source.report.duration_s == pytest.approx(3.0)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotation_is_applied(tmp_path, turns):
    # The pictures lie on their side; the file says by how much a player has to turn them.
    path = rotate(write_video(tmp_path / "r.mp4", 20, turned=turns), turns)
    source = FrameSource(path)
    assert numbers(source) == [[2, 7], [12, 17]]
    assert (source.report.width, source.report.height) == (160, 96)
    resized = FrameSampling(2, (320, 192))
    assert numbers(FrameSource(path), 1.0, resized) == [[2, 7], [12, 17]]


def test_a_slide_show_has_no_missing_clips(tmp_path):
    path = write_video(tmp_path / "s.mp4", 4, pts_ms=[0, 5000, 10000, 15000])
    source = FrameSource(path)
    shown = numbers(source)
    assert [pair[0] for pair in shown[:15]] == [0] * 5 + [1] * 5 + [2] * 5
    assert (source.report.status, source.report.n_interpolated) == ("ok", 0)


def ffmpeg_fps_numbers(path, clip_len_s, n_clips):
    """What FFmpeg's own fps filter picks, through PyAV's filter graph."""
    picked = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        source = graph.add_buffer(template=stream, time_base=stream.time_base)
        rate = graph.add("fps", f"fps={1 / clip_len_s}")
        sink = graph.add("buffersink")
        source.link_to(rate)
        rate.link_to(sink)
        graph.configure()
        for frame in [*container.decode(stream), None]:
            graph.push(frame)
            while True:
                try:
                    picked.append(read_number(graph.pull().to_ndarray(format="rgb24")))
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
    return picked[:n_clips]


@pytest.mark.parametrize("clip_len_s", [1.0, 2.0])
@pytest.mark.parametrize("stamps", [None, VARIABLE_MS], ids=["constant", "variable"])
def test_ffmpeg_fps_rule_equals_the_filter(tmp_path, clip_len_s, stamps):
    path = write_video(tmp_path / "f.mp4", 60, fps=15, pts_ms=stamps)
    source = FrameSource(path)
    ours = [n for (n,) in numbers(source, clip_len_s, FrameSampling(1, None, "ffmpeg_fps"))]
    assert ours == ffmpeg_fps_numbers(path, clip_len_s, len(ours))


def test_clips_stream_before_the_file_is_read(tmp_path):
    source = FrameSource(write_video(tmp_path / "a.mp4", 50))
    clips = source.clips(1.0, FrameSampling(1, (16, 16)))
    assert next(clips).index == 0
    with pytest.raises(RuntimeError, match="before all clips are read"):
        _ = source.report
    assert sum(1 for _ in clips) == 4
    assert source.report.n_clips == 5


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (VideoLimits(max_duration_s=2.0), "too_long"),
        (VideoLimits(max_pixels=1000), "too_many_pixels"),
    ],
)
def test_limits(tmp_path, limits, code):
    source = FrameSource(write_video(tmp_path / "a.mp4", 45), limits)
    with pytest.raises(VideoError) as caught:
        numbers(source)
    assert caught.value.code == code
    assert (source.report.status, source.report.reason) == ("failed", code)


def test_a_length_the_header_hides_is_found_while_decoding(tmp_path):
    # A live-style Matroska file states no duration.
    path = write_video(tmp_path / "a.mkv", 45, options={"live": "1"})
    source = FrameSource(path, VideoLimits(max_duration_s=3.0))
    with pytest.raises(VideoError) as caught:
        numbers(source)
    assert caught.value.code == "too_long"
    assert source.report.n_clips > 0


def test_clip_length_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="clip_len_s"):
        numbers(FrameSource(write_video(tmp_path / "a.mp4", 5)), 0.0)
