"""Videos as the field has them: joined, without time stamps, with wrong headers, with covers."""

import json
import os
import shutil
import struct
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.data.ingest.videos import VideoLibrary
from mrmodel.errors import VideoError
from mrmodel.features.extraction.jobs import VideoJob, video_entry
from mrmodel.video.decoder import Decoder, VideoLimits
from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling
from mrmodel.video.timeline import Timeline
from tests.video.fixtures import numbered_picture, read_number, write_video

B_FRAMES = {"bf": "3", "b_strategy": "0", "b-pyramid": "none"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
KINDS = [  # suffix, codec, frames per second, encoding, options of the container
    ("ts", "libx264", 10, {}, {}),
    ("ts", "libx264", 10, B_FRAMES, {}),
    ("mpg", "mpeg2video", 25, {}, {}),
    ("mkv", "libx264", 10, B_FRAMES, {}),
    ("mp4", "libx264", 10, B_FRAMES, FRAGMENTS),
]


def shown(path, limits=None):
    """(time in s, number) of each frame, and the decoder; no time may come twice."""
    decoder, scaler = Decoder(path, limits or VideoLimits()), VideoReformatter()
    found = [
        (frame.time_s, read_number(frame.to_rgb((160, 96), FrameSampling(1, None), scaler)))
        for frame in decoder.frames()
    ]
    assert all(b[0] > a[0] for a, b in pairwise(found))
    return found, decoder


def report_of(path, limits=None):
    """Numbers in the middle of each second, and the report."""
    source = FrameSource(path, limits)
    clips = source.clips(1.0, FrameSampling(1, (160, 96)))
    return [read_number(clip.frames[0]) for clip in clips], source.report


def assert_times(found, fps, start=0):
    """Every frame was seen, in order and at its time."""
    times, numbers = zip(*found, strict=True)
    assert list(times) == pytest.approx([n / fps for n in range(len(found))], abs=1e-3)
    assert list(numbers) == [start + n for n in range(len(found))]


def joined(path, lengths, *, fps=10, starts_ms=None, codec="libx264", encoding=None, options=None):
    """Files of so many frames, numbered on, and joined as `cat` joins them."""
    data, first = b"", 0
    for part, length in enumerate(lengths):
        start_ms = 0 if starts_ms is None else starts_ms[part]
        name = path.with_name(f"{part}{path.suffix}")
        numbered(name, first, length, start_ms, fps, codec, encoding, options)
        data += name.read_bytes()
        first += length
    path.write_bytes(data)
    return path


def numbered(path, first, length, start_ms, fps, codec="libx264", encoding=None, options=None):
    """A file of frames `first` .. `first + length`, from `start_ms` on."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.gop_size = 20
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        fast = {"preset": "ultrafast", "crf": "18"} if codec == "libx264" else {"qscale": "2"}
        stream.options = fast | (encoding or {})
        for number in range(length):
            picture = numbered_picture(first + number, 160, 96)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number + start_ms * fps // 1000, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def with_sound(
    path,
    n_frames,
    sound_s,
    *,
    codec=None,
    jump_at=None,
    jump_s=0.0,
    cover=None,
    marked=True,
    options=None,
):
    """10 frames a second and sound; from frame `jump_at` on, frames are shown `jump_s` later.

    `cover` is the codec of a picture more, and `marked` says that it is a cover picture.
    """
    audio = "libopus" if path.suffix == ".webm" else "aac"
    rate, chunk = (48000, 960) if audio == "libopus" else (16000, 1024)
    with av.open(str(path), "w", options=options or {}) as container:
        sound = container.add_stream(audio, rate=rate)
        video = None
        if n_frames:
            codec = codec or ("libvpx" if path.suffix == ".webm" else "libx264")
            video = container.add_stream(codec, rate=10)
            kind = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            video.width, video.height, video.pix_fmt = 160, 96, kind
            video.codec_context.thread_count = 1
            fast = {"deadline": "realtime", "cpu-used": "8", "crf": "4", "b": "2M"}
            video.options = fast if codec == "libvpx" else {"preset": "ultrafast", "crf": "18"}
        picture = container.add_stream(cover, rate=1) if cover else None
        if picture is not None:
            kind = "rgb24" if cover == "png" else "yuvj420p"
            picture.width, picture.height, picture.pix_fmt = 160, 96, kind
            if marked:
                picture.disposition = av.stream.Disposition.attached_pic
        events = [(chunk * n / rate, n, sound) for n in range(int(sound_s * rate / chunk))]
        for number in range(n_frames):
            late_s = jump_s if jump_at is not None and number >= jump_at else 0.0
            events.append((number / 10 + late_s, number, video))
        for time_s, number, stream in sorted(events, key=lambda event: event[0]):
            if stream is sound:
                kind = "flt" if audio == "libopus" else "fltp"
                silence = np.zeros((1, chunk), np.float32)
                frame = av.AudioFrame.from_ndarray(silence, format=kind, layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = (
                    rate,
                    number * chunk,
                    Fraction(1, rate),
                )
            else:
                image = numbered_picture(number, 160, 96)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = round(time_s * 10), Fraction(1, 10)
            container.mux(stream.encode(frame))
        if picture is not None:
            image = numbered_picture(7, 160, 96)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format=picture.pix_fmt)
            frame.pts = 0
            container.mux(picture.encode(frame))
        for stream in filter(None, (sound, video, picture)):
            container.mux(stream.encode(None))
    return path


def patch_stamps(path, change):
    """Change the display times of a transport stream without B-frames: ticks or None."""
    data, number = bytearray(path.read_bytes()), 0
    for packet in range(0, len(data), 188):
        start = data.find(b"\x00\x00\x01\xe0", packet, packet + 188)
        if not data[packet + 1] & 0x40 or start < 0:
            continue
        at = start + 9
        b = data[at : at + 5]
        ticks = (b[0] >> 1 & 7) << 30 | b[1] << 22 | (b[2] >> 1) << 15 | b[3] << 7 | b[4] >> 1
        stamp = change(number, ticks)
        length = data[start + 8]
        data[at : at + length] = b"\xff" * length
        data[start + 7] = 0 if stamp is None else 0x80
        if stamp is not None:
            data[at : at + 5] = bytes(
                [
                    0x21 | (stamp >> 29 & 0xE),
                    stamp >> 22 & 0xFF,
                    (stamp >> 14 & 0xFE) | 1,
                    stamp >> 7 & 0xFF,
                    (stamp << 1 & 0xFE) | 1,
                ]
            )
        number += 1
    path.write_bytes(data)
    return path


# Kind 1: time stamps


@pytest.mark.parametrize(
    ("suffix", "codec", "fps", "encoding", "options"), KINDS, ids=lambda value: str(value)[:12]
)
def test_joined_files_are_laid_end_to_end(tmp_path, suffix, codec, fps, encoding, options):
    path = tmp_path / f"joined.{suffix}"
    how = {"fps": fps, "codec": codec, "encoding": encoding, "options": options}
    # FFmpeg reads two segments of Matroska.
    lengths_s = (6, 3) if suffix == "mkv" else (4, 2, 3)
    joined(path, [seconds * fps for seconds in lengths_s], **how)
    found, _decoder = shown(path)
    assert len(found) == 9 * fps
    assert_times(found, fps)
    numbers, report = report_of(path)
    assert numbers == [second * fps + fps // 2 for second in range(9)]
    assert (report.status, report.reason, report.n_clips) == ("partial", "joined", 9)
    assert report.duration_s == pytest.approx(9.0)
    starts_s = [0, *accumulate(lengths_s[:-1])]
    assert [part.start_s for part in report.parts] == pytest.approx(starts_s)
    assert [part.offset_s for part in report.parts] == pytest.approx(starts_s)
    first = f"{starts_s[1]:.1f} s"
    assert report.notes()[1] == f"from {first} on, times are those of the file +{first}"
    assert Decoder(path, VideoLimits()).length_s() == pytest.approx(9.0)


@settings(max_examples=12)
@given(
    parts=st.lists(
        st.tuples(st.integers(3, 30), st.integers(0, 90_000_000)), min_size=2, max_size=4
    ),
    encoding=st.sampled_from([{}, B_FRAMES]),
)
def test_no_frame_of_joined_streams_is_lost(tmp_path_factory, parts, encoding):
    """Parts of any length from any time on: 0 to 25 hours, forward and back."""
    folder = tmp_path_factory.mktemp("joined")
    lengths, starts_ms = zip(*parts, strict=True)
    starts_ms = [start - start % 100 for start in starts_ms]
    path = joined(folder / "a.ts", lengths, starts_ms=starts_ms, encoding=encoding)
    found, decoder = shown(path)
    assert [number for _time, number in found] == list(range(sum(lengths)))
    steps_ms = [
        after - (before + 100 * length)
        for before, length, after in zip(starts_ms, lengths, starts_ms[1:], strict=False)
    ]
    # A gap of up to ten seconds is kept. With B-frames the writer moves the first part by a frame.
    kept_s = sum(step / 1000 for step in steps_ms if 0 < step <= 9000)
    if not encoding and not any(9000 < step <= 11_000 for step in steps_ms):
        breaks = sum(step < 0 or step > 9000 for step in steps_ms)
        assert len(decoder.parts) == 1 + breaks
        assert decoder.duration_s() == pytest.approx(sum(lengths) / 10 + kept_s)
        assert decoder.length_s() == pytest.approx(decoder.duration_s())


@pytest.mark.parametrize("suffix", ["h264", "hevc", "mp4"])
def test_raw_streams_are_timed_by_their_frame_rate(tmp_path, suffix):
    codec = "libx265" if suffix == "hevc" else "libx264"
    extra = {"x265-params": "log-level=none"} if suffix == "hevc" else {}
    raw = tmp_path / ("a.hevc" if suffix == "hevc" else "a.h264")
    write_video(raw, 60, codec=codec, gop=20, encoding={"bf": "2"} | extra)
    path = raw.rename(tmp_path / f"raw.{suffix}")
    numbers, report = report_of(path)
    assert numbers == [5, 15, 25, 35, 45, 55]
    assert (report.status, report.reason) == ("partial", "no_time_stamps")
    assert (report.duration_s, report.n_untimed) == (6.0, 60)
    assert_times(shown(path)[0], 10)
    assert Decoder(path, VideoLimits()).length_s() == pytest.approx(6.0)


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg2video"])
def test_raw_streams_that_ffmpeg_stamps_are_told(tmp_path, codec):
    """MJPEG states no rate, and 25 frames a second are a guess."""
    suffix, kind = ("mjpeg", "yuvj420p") if codec == "mjpeg" else ("m2v", "yuv420p")
    path = write_video(tmp_path / f"a.{suffix}", 50, 25, codec=codec, pix_fmt=kind)
    report = report_of(path.rename(tmp_path / "raw.mp4"))[1]
    assert (report.status, report.reason) == ("partial", "no_time_stamps")
    assert (report.duration_s, report.n_untimed) == (2.0, 50)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("plain") / "a.ts", 60, gop=20)


@settings(max_examples=10)
@given(st.data())
def test_frames_whose_time_stamps_are_missing_or_frozen_are_all_seen(plain, data):
    """Any stretch of a stream, from one frame to all of them."""
    path = Path(shutil.copy(plain, plain.with_name("b.ts")))
    first = data.draw(st.integers(0, 55))
    last = data.draw(st.integers(first + 4, 60))
    frozen = data.draw(st.booleans())
    stamps = []

    def change(number, ticks):
        stamps.append(ticks)
        if not first <= number < last:
            return ticks
        return stamps[first] if frozen else None

    patch_stamps(path, change)
    found, decoder = shown(path)
    assert_times(found, 10)
    assert decoder.untimed == (frozen or last - first > 10)


def test_some_time_stamps_in_a_second_are_enough(tmp_path):
    path = patch_stamps(write_video(tmp_path / "a.ts", 60), lambda n, t: None if n % 5 else t)
    assert_times(shown(path)[0], 10)
    assert report_of(path)[1].status == "ok"


@pytest.mark.parametrize("wrong_s", [-3.0, 500.0, 90_000.0])
def test_a_single_wrong_stamp_moves_nothing(tmp_path, wrong_s):
    path = write_video(tmp_path / "a.ts", 60)
    patch_stamps(path, lambda n, t: t + int(wrong_s * 90_000) if n == 40 else t)
    found, decoder = shown(path)
    assert_times(found, 10)
    assert len(decoder.parts) == 1
    assert decoder.untimed


def test_stamps_that_jitter_move_nothing(tmp_path):
    path = patch_stamps(write_video(tmp_path / "a.ts", 60), lambda n, t: t - (n % 7 == 3) * 40_000)
    assert_times(shown(path)[0], 10)
    assert report_of(path)[1].reason == "no_time_stamps"


def test_avi_with_b_frames_is_in_order(tmp_path):
    path = write_video(tmp_path / "a.avi", 60, encoding=B_FRAMES, gop=20)
    assert_times(shown(path)[0], 10)
    assert report_of(path)[1].status == "ok"


def test_a_jump_of_a_broken_clock_is_closed(tmp_path):
    path = joined(tmp_path / "a.ts", (30, 30), starts_ms=(0, 60_000))
    numbers, report = report_of(path)
    assert numbers == [5, 15, 25, 35, 45, 55]
    assert (report.reason, report.duration_s) == ("joined", pytest.approx(6.0))
    assert report.parts[1].offset_s == pytest.approx(-57.0)
    # Whoever knows better says so.
    assert report_of(path, VideoLimits(max_gap_s=100.0))[1].duration_s == pytest.approx(63.0)


@pytest.mark.parametrize("suffix", ["ts", "flv"])
@pytest.mark.parametrize("sound_s", [0.5, 26.0])
def test_a_jump_is_kept_where_the_sound_goes_on(tmp_path, suffix, sound_s):
    path = with_sound(tmp_path / f"a.{suffix}", 40, sound_s, jump_at=20, jump_s=20.0)
    _numbers, report = report_of(path)
    assert report.duration_s == pytest.approx(24.0 if sound_s > 1 else 4.0, abs=0.01)
    assert (len(report.parts) == 2) == (sound_s < 1)
    assert report.status == "partial"


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_screen_recordings_have_minutes_between_frames(tmp_path, suffix):
    stamps = [0, 100, 60_000, 61_000, 240_000]
    path = write_video(tmp_path / f"a.{suffix}", 5, pts_ms=stamps, encoding=B_FRAMES)
    found, decoder = shown(path)
    assert [time for time, _number in found] == pytest.approx([s / 1000 for s in stamps])
    assert len(decoder.parts) == 1


@pytest.mark.parametrize("encoding", [{}, B_FRAMES], ids=["plain", "b-frames"])
def test_wrapped_time_stamps_are_no_break(tmp_path, encoding):
    plain = write_video(tmp_path / "a.ts", 80, gop=20, encoding=encoding)
    path = tmp_path / "wrapped.ts"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.pts += 2**33 - 3 * 90_000
                packet.dts += 2**33 - 3 * 90_000
                packet.stream = copy
                target.mux(packet)
    numbers, report = report_of(path)
    assert numbers == report_of(plain)[0]
    assert (report.status, report.parts, report.duration_s) == ("ok", (), pytest.approx(8.0))


@pytest.mark.parametrize("suffix", ["flv", "mp4", "wmv"])
def test_an_appended_file_that_no_player_shows_is_told(tmp_path, suffix):
    codec = "wmv2" if suffix == "wmv" else "libx264"
    path = joined(tmp_path / f"a.{suffix}", (40, 20), codec=codec)
    _numbers, report = report_of(path)
    assert (report.status, report.reason) == ("partial", "truncated")
    assert report_of(tmp_path / f"0.{suffix}")[1].status == "ok"


def test_a_stream_that_another_one_continues_is_told(tmp_path):
    """Parts of two programs, with identifiers of their own."""
    numbered(tmp_path / "0.ts", 0, 30, 0, 10)
    numbered(tmp_path / "1.ts", 30, 30, 0, 10, options={"mpegts_start_pid": "0x200"})
    path = tmp_path / "a.ts"
    path.write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    assert report_of(path)[1].status == "partial"


def test_what_was_changed_is_kept_in_the_index(tmp_path):
    path = joined(tmp_path / "a.ts", (20, 20))
    job = VideoJob.of("a", path)
    extra = json.loads(video_entry(job, report_of(path)[1]).extra)
    assert extra["parts"] == [
        {"start_s": 0.0, "offset_s": 0.0},
        {"start_s": 2.0, "offset_s": 2.0},
    ]
    whole = report_of(tmp_path / "0.ts")[1]
    assert sorted(json.loads(video_entry(job, whole).extra)) == [
        *("bad_packets", "decoded_s", "height", "width")
    ]


# Kind 2: the header is a hint


def patch_matroska_duration(path, seconds):
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3
    data[at : at + 8] = struct.pack(">d", seconds * 1000)
    path.write_bytes(data)
    return path


def patch_mp4_durations(path, factor):
    """The durations of movie, track and media; the tables of samples stay."""
    data = bytearray(path.read_bytes())
    for name, offset in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)):
        at = data.index(name) + 4 + offset
        (ticks,) = struct.unpack_from(">I", data, at)
        struct.pack_into(">I", data, at, int(ticks * factor))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("stated_s", [1.0, 5.5, 20.0, 100_000.0])
def test_the_packets_of_matroska_decide_its_length(tmp_path, stated_s):
    path = patch_matroska_duration(write_video(tmp_path / "a.mkv", 60), stated_s)
    numbers, report = report_of(path)
    assert (len(numbers), report.status, report.duration_s) == (6, "ok", pytest.approx(6.0))
    library = VideoLibrary(tmp_path)
    assert library.problem("a", 6.0) is None
    assert "lasts 6.0 s" in library.problem("a", 7.0)


@pytest.mark.parametrize("factor", [0.2, 4.0, 10_000.0])
def test_the_packets_of_mp4_decide_its_length(tmp_path, factor):
    path = patch_mp4_durations(write_video(tmp_path / "a.mp4", 60), factor)
    numbers, report = report_of(path)
    assert (len(numbers), report.status, report.duration_s) == (6, "ok", pytest.approx(6.0))
    assert VideoLibrary(tmp_path).problem("a", 6.0) is None
    assert "lasts 6.0 s" in VideoLibrary(tmp_path).problem("a", 7.0)


@pytest.mark.parametrize("suffix", ["webm", "mkv", "mp4", "mov", "ts", "flv"])
def test_sound_that_is_longer_takes_no_picture_away(tmp_path, suffix):
    path = with_sound(tmp_path / f"a.{suffix}", 40, 12.0)
    numbers, report = report_of(path)
    assert (len(numbers), report.status) == (4, "ok")
    assert report.duration_s == pytest.approx(4.0, abs=0.01)
    assert "lasts 4.0 s" in VideoLibrary(tmp_path).problem("a", 12.0)


@pytest.mark.parametrize("suffix", ["webm", "mkv", "mp4", "avi"])
def test_a_file_that_breaks_off_is_truncated_still(tmp_path, suffix):
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    if suffix == "avi":
        path = write_video(tmp_path / "a.avi", 80)
    else:
        path = with_sound(tmp_path / f"a.{suffix}", 80, 8.0, options=options)
    data = path.read_bytes()
    for share in (0.5, 0.8):
        path.write_bytes(data[: int(len(data) * share)])
        report = report_of(path)[1]
        assert (report.status, report.reason) == ("partial", "truncated")


def test_a_row_of_a_video_that_lies_about_its_length_stays(tmp_path):
    """Reading the packets of an hour takes a second or so."""
    path = write_video(tmp_path / "a.mkv", 60, options={"live": "1"})
    assert Decoder(path, VideoLimits()).length_s() == pytest.approx(6.0)
    assert Decoder(path, VideoLimits(max_duration_s=3.0)).length_s() < 4.0


HEALTHY = [  # name, encoding, options of the container
    ("a.mp4", {}, {}),
    ("b.mp4", B_FRAMES, {}),
    ("fragments.mp4", B_FRAMES, FRAGMENTS),
    ("dash.mp4", B_FRAMES, {"movflags": "frag_keyframe+dash+global_sidx+delay_moov"}),
    ("a.mkv", {}, {}),
    ("b.mkv", B_FRAMES, {}),
    ("live.mkv", B_FRAMES, {"live": "1"}),
    ("first.mkv", B_FRAMES, {"cues_to_front": "1", "reserve_index_space": "50000"}),
    ("a.ts", B_FRAMES, {}),
    ("a.flv", B_FRAMES, {}),
    ("a.avi", B_FRAMES, {}),
]


@pytest.mark.parametrize(("name", "encoding", "options"), HEALTHY)
def test_the_length_is_that_of_all_packets(tmp_path, name, encoding, options, monkeypatch):
    """However few are read: by an index, of one stream."""
    path = write_video(tmp_path / name, 200, options=options, gop=10, encoding=encoding)
    short = Decoder(path, VideoLimits()).length_s()
    *_frames, last = Decoder(path, VideoLimits()).frames()
    monkeypatch.setattr("mrmodel.video.decoder.read_shortly", lambda *_: False)
    assert short == Decoder(path, VideoLimits()).length_s() == last.time_s + last.duration_s


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_only_the_last_packets_are_looked_at_closely(tmp_path, suffix, monkeypatch):
    path = write_video(tmp_path / f"a.{suffix}", 500, gop=10, encoding=B_FRAMES)
    sizes, note = [], Timeline._note
    monkeypatch.setattr(Timeline, "_note", lambda *a: (sizes.append(a[1].size), note(*a)))
    assert Decoder(path, VideoLimits()).length_s() == pytest.approx(50.0)
    assert sum(sizes) < path.stat().st_size / 2


@pytest.mark.parametrize("lengths", [(200, 200), (200, 300)])
@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_an_index_of_the_first_part_is_not_all(tmp_path, suffix, lengths):
    options = FRAGMENTS if suffix == "mp4" else {}
    path = joined(tmp_path / f"a.{suffix}", lengths, options=options)
    assert Decoder(path, VideoLimits()).length_s() == pytest.approx(sum(lengths) / 10)


# Kind 3: covers


def test_sound_with_a_cover_is_no_video(tmp_path):
    path = with_sound(tmp_path / "a.mp4", 0, 3.0, cover="mjpeg")
    with pytest.raises(VideoError, match="streams in the file: audio, cover picture") as caught:
        report_of(path)
    assert caught.value.code == "no_video_stream"
    problem = VideoLibrary(tmp_path).problem(path.stem, 1.0)
    assert problem == f"its video {path.name} cannot be read: no_video_stream"


def test_a_film_with_a_cover_is_the_film(tmp_path):
    path = with_sound(tmp_path / "a.mp4", 40, 4.0, cover="mjpeg")
    numbers, report = report_of(path)
    assert (numbers, report.status) == ([5, 15, 25, 35], "ok")


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mkv", "mjpeg"), ("mov", "png"), ("mov", "mjpeg"), ("avi", "mjpeg")]
)
def test_a_cover_without_the_mark_of_one_is_no_video(tmp_path, suffix, codec):
    path = with_sound(tmp_path / f"a.{suffix}", 0, 3.0, cover=codec, marked=False)
    with pytest.raises(VideoError, match="streams in the file: audio, cover picture") as caught:
        report_of(path)
    assert caught.value.code == "no_video_stream"
    path = with_sound(tmp_path / f"film.{suffix}", 40, 4.0, cover=codec, marked=False)
    report = report_of(path)[1]
    assert (report.n_clips, report.status) == (4, "ok")


def test_one_picture_that_the_file_outlasts_is_no_video(tmp_path):
    path = write_video(tmp_path / "a.mkv", 1, codec="mjpeg", pix_fmt="yuvj420p")
    patch_matroska_duration(path, 60.0)
    with pytest.raises(VideoError, match="streams in the file: cover picture"):
        report_of(path)


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("avi", "mjpeg", "yuvj420p"),
        ("mov", "mjpeg", "yuvj420p"),
        ("mov", "png", "rgb24"),
        ("gif", "gif", "gray"),
    ],
)
@pytest.mark.parametrize("n_frames", [1, 2])
def test_films_of_still_images_are_videos(tmp_path, suffix, codec, pix_fmt, n_frames):
    path = write_video(tmp_path / f"a.{suffix}", n_frames, 1, codec=codec, pix_fmt=pix_fmt)
    report = report_of(path)[1]
    assert (report.status, report.n_clips) == ("ok", n_frames)


@pytest.mark.parametrize("suffix", ["avi", "mov", "mkv"])
def test_a_film_of_still_images_with_sound_is_a_video(tmp_path, suffix):
    path = with_sound(tmp_path / f"a.{suffix}", 20, 6.0, codec="mjpeg")
    report = report_of(path)[1]
    assert (report.n_clips, report.status) == (2, "ok")


# Files that cannot be read


def test_a_cut_index_is_called_that(tmp_path):
    """Wherever a download breaks off."""
    path = write_video(tmp_path / "a.mp4", 30, gop=10, options={"movflags": "faststart"})
    data = path.read_bytes()
    start = data.index(b"mdat")
    for n_bytes in [*range(0, start, 40), start + 5, start + 300]:
        path.write_bytes(data[:n_bytes])
        with pytest.raises(VideoError) as caught:
            report_of(path)
        assert caught.value.code == "invalid_data", n_bytes
    path.write_bytes(data[: start + (len(data) - start) // 2])
    assert report_of(path)[1].reason == "truncated"


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null"), tmp_path / "link.mp4"):
        if not path.exists():
            path.symlink_to(pipe)
        with pytest.raises(VideoError, match="a pipe or a device") as caught:
            report_of(path)
        assert caught.value.code == "unreadable"
