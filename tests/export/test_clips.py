"""Clips, copied and encoded again, are what a player of the video shows."""

from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import pytest

from mrmodel.errors import VideoError
from mrmodel.export.encode import encode_pieces
from mrmodel.export.pieces import Piece, index_video
from mrmodel.export.stream_copy import copy_pieces, suffix_of_copies
from tests.export.videos import VPX, Content, constant, content_of, make_video, pitch_of

NTSC = Fraction(30000, 1001)
CONSTANT = constant(100, Fraction(25))
# 20 to 100 ms from frame to frame.
VARIABLE = [Fraction(sum((20, 60, 40, 100)[n % 4] for n in range(m)), 1000) for m in range(70)]
MILLISECOND = Fraction(1, 1000)
VIDEOS = {
    "constant.mp4": (CONSTANT, Fraction(1, 25), {}),
    "ntsc.mkv": (constant(100, NTSC), 1 / NTSC, {"rate": NTSC}),
    "variable.mp4": (VARIABLE, MILLISECOND, {}),
    "variable.mkv": (VARIABLE, MILLISECOND, {}),
    "transport.ts": (CONSTANT, Fraction(1, 25), {}),
    "late.mkv": ([1 + time for time in CONSTANT], Fraction(1, 25), {"sound_s": 5.0}),
    "turned.mp4": (CONSTANT, Fraction(1, 25), {"turned": 1}),
    "open.mp4": (
        CONSTANT,
        Fraction(1, 25),
        {"options": {"preset": "veryfast", "x264-params": "keyint=25:open-gop=1:bframes=3"}},
    ),
    "silent.mkv": (CONSTANT, Fraction(1, 25), {"sound": None}),
    "vp8.webm": (CONSTANT, Fraction(1, 25), {"codec": "libvpx", "options": VPX, "sound": None}),
}
WINDOWS = [(1.5, 2.54), (3.1, 99.0)]


@pytest.fixture(scope="module", params=VIDEOS)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    times_s, time_base, options = VIDEOS[request.param]
    path = tmp_path_factory.mktemp("videos") / request.param
    return make_video(path, times_s, time_base, **options)


@pytest.fixture(scope="module")
def content(video: Path) -> Content:
    return content_of(video)


def pieces_of(video: Path, *windows: tuple[float, float]) -> list[Piece]:
    index = index_video(video)
    return [Piece(video, index, start_s, end_s) for start_s, end_s in windows]


def shown(content: Content, start_s: float, end_s: float) -> list[tuple[int, float]]:
    """Numbers and times of the frames of a video from one time to another."""
    found = zip(content.numbers, content.times_s, strict=True)
    return [(n, time) for n, time in found if start_s - 1e-3 <= time < end_s - 1e-3]


def test_a_copy_has_the_frames_that_it_says(video: Path, content: Content, tmp_path: Path) -> None:
    for piece in pieces_of(video, *WINDOWS):
        suffix = suffix_of_copies(video, piece.index)
        assert suffix == (".mkv" if video.suffix == ".webm" else ".mp4")
        clip = tmp_path / f"clip{suffix}"
        (span,) = copy_pieces(clip, suffix, [piece], "a title")
        wanted, found = shown(content, span.start_s, span.end_s), content_of(clip)
        assert found.numbers == [number for number, _ in wanted]
        expected = [time - span.start_s for _, time in wanted]
        # Matroska and the clock of a copy have milliseconds.
        assert found.times_s == pytest.approx(expected, abs=2e-3)
        last = min(piece.end_s, piece.index.end_s)
        first = float(piece.index.frame_times_s()[0])
        assert span.start_s <= max(piece.start_s, first) + 1e-3
        assert last - 1e-3 <= span.end_s
        assert span.end_s - span.start_s <= last - max(piece.start_s, first) + 3.0


def test_an_exact_clip_is_off_by_a_frame_at_most(
    video: Path, content: Content, tmp_path: Path
) -> None:
    for start_s, end_s in WINDOWS:
        (piece,) = pieces_of(video, (start_s, end_s))
        clip = tmp_path / "clip.mp4"
        (span,) = encode_pieces(clip, [piece], "a title")
        frames = piece.index.frame_times_s()
        longest = max(1 / float(piece.index.rate), max(frames[1:] - frames[:-1])) + 1e-3
        wanted, found = shown(content, span.start_s, span.end_s), content_of(clip)
        extra = len(found.numbers) - len(wanted)  # a frame on the screen at the start
        assert extra in (0, 1)
        assert found.numbers[extra:] == [number for number, _ in wanted]
        expected = [time - span.start_s for _, time in wanted]
        assert found.times_s[extra:] == pytest.approx(expected, abs=2e-3)
        assert abs(span.start_s - max(start_s, frames[0])) <= longest
        assert abs(span.end_s - min(end_s, piece.index.end_s)) <= longest
        assert found.duration_s == pytest.approx(span.end_s - span.start_s, abs=0.03)
        assert found.size == (160, 96)


@pytest.mark.parametrize("exact", [False, True])
def test_the_sound_fits_the_pictures(exact: bool, tmp_path: Path) -> None:
    """Also where the first picture is late, and in all pieces of a reel."""
    for name in ("late.mkv", "transport.ts"):
        times_s, time_base, options = VIDEOS[name]
        video = make_video(tmp_path / name, times_s, time_base, **options)
        pieces = pieces_of(video, (1.2, 1.9), (2.1, 3.9))
        reel = tmp_path / "reel.mp4"
        copy = partial(copy_pieces, suffix=".mp4")
        spans = (encode_pieces if exact else copy)(reel, pieces=pieces, title="")
        found, offset_s = content_of(reel), 0.0
        for span in spans:
            for second in range(int(span.start_s), int(span.end_s) + 1):
                middle = second + 0.5
                if span.start_s + 0.15 < middle < span.end_s - 0.15:
                    heard = found.pitch_at(middle - span.start_s + offset_s)
                    assert heard == pytest.approx(pitch_of(second), abs=15), (name, middle)
            offset_s += span.end_s - span.start_s
        assert found.duration_s == pytest.approx(offset_s, abs=0.05)
        assert all(a < b for a, b in zip(found.times_s, found.times_s[1:], strict=False))


def test_a_reel_of_different_videos_is_encoded(tmp_path: Path) -> None:
    """Pictures are fitted into the size of the first; a silent piece is silence."""
    first = make_video(tmp_path / "a.mp4", CONSTANT[:50], Fraction(1, 25))
    other = make_video(
        tmp_path / "b.mkv", constant(60, NTSC), 1 / NTSC, rate=NTSC, size=(240, 240), sound=None
    )
    pieces = [*pieces_of(first, (0.4, 1.0)), *pieces_of(other, (0.5, 1.0))]
    with pytest.raises(VideoError, match=r"b\.mkv: not_copied: .*another format.*--exact"):
        copy_pieces(tmp_path / "reel.mp4", ".mp4", pieces, "")
    spans = encode_pieces(tmp_path / "reel.mp4", pieces, "")
    found = content_of(tmp_path / "reel.mp4")
    assert found.size == (160, 96)
    assert found.duration_s == pytest.approx(sum(s.end_s - s.start_s for s in spans), abs=0.05)
    assert abs(found.sound[-round(0.3 * 48000) :]).max() < 0.01


def test_a_reel_of_portrait_and_landscape_is_encoded(tmp_path: Path) -> None:
    """A phone's pictures differ by a note in the header alone."""
    turns = [
        make_video(tmp_path / f"{n}.mp4", CONSTANT[:30], Fraction(1, 25), turned=n) for n in (0, 2)
    ]
    pieces = [piece for video in turns for piece in pieces_of(video, (0.2, 0.6))]
    with pytest.raises(VideoError, match=r"2\.mp4: not_copied: .*another format"):
        copy_pieces(tmp_path / "reel.mp4", ".mp4", pieces, "")
    encode_pieces(tmp_path / "reel.mp4", pieces, "")
    assert content_of(tmp_path / "reel.mp4").numbers == [*range(5, 15)] * 2
    copy_pieces(tmp_path / "reel.mp4", ".mp4", [pieces[0], pieces[0]], "")


def test_odd_sizes_and_oblong_pixels_are_made_even_and_square(tmp_path: Path) -> None:
    video = tmp_path / "odd.mkv"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 161, 97, "yuv444p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame(161, 97, "yuv444p")))
        container.mux(stream.encode(None))
    encode_pieces(tmp_path / "clip.mp4", pieces_of(video, (0.0, 0.4)), "")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.width, context.height, context.pix_fmt) == (214, 96, "yuv420p")
        assert (context.sample_aspect_ratio or 1) == 1


def test_a_video_whose_clock_breaks_is_encoded_only(tmp_path: Path) -> None:
    part = make_video(tmp_path / "part.ts", CONSTANT[:50], Fraction(1, 25))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * 3)
    (piece,) = pieces_of(joined, (1.6, 2.4))
    with pytest.raises(VideoError, match=r"not_copied: .*clock that breaks; .*--exact"):
        suffix_of_copies(joined, piece.index)
    encode_pieces(tmp_path / "clip.mp4", [piece], "")
    assert content_of(tmp_path / "clip.mp4").numbers == [*range(40, 50), *range(10)]


def test_a_video_without_time_stamps_is_encoded_only(tmp_path: Path) -> None:
    video = make_video(tmp_path / "raw.h264", CONSTANT[:100], Fraction(1, 25), sound=None)
    (piece,) = pieces_of(video, (1.0, 2.0))
    with pytest.raises(VideoError, match="not_copied"):
        suffix_of_copies(video, piece.index)
    encode_pieces(tmp_path / "clip.mp4", [piece], "")
    assert content_of(tmp_path / "clip.mp4").numbers == list(range(25, 50))
