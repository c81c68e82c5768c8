"""Findings 3, 4, 15, 18: what a file names is not opened, and no file takes for ever or all memory.

Finding 9, requests to a served model, is in `test_served_places`.
"""

from __future__ import annotations

import ast
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from mrmodel.data.ingest.videos import VideoLibrary
from mrmodel.errors import VideoError
from mrmodel.features.extraction.job_runner import describe_stream, extraction_plan
from mrmodel.features.extraction.jobs import VideoJob, failure_of
from mrmodel.storage import Listed
from mrmodel.video import container, remote
from mrmodel.video.decoder import Decoder, VideoLimits
from mrmodel.video.frames import FrameSource
from mrmodel.video.remote import write_pointer
from mrmodel.video.sampling import FrameSampling
from tests.test_dead_code import MODULES, dotted
from tests.video.fixtures import read_number, write_audio, write_video

SAMPLING, SCALER = FrameSampling(1, None), VideoReformatter()


class Objects:
    """A bucket in memory: address -> content."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._contents = folder, dict[str, bytes]()
        monkeypatch.setattr(remote, "open_object", self._open)

    def link(self, name: str, content: bytes) -> Path:
        """A pointer to an object of that name."""
        url = f"s3://lake/films/{name}"
        self._contents[url] = content
        write_pointer(self._folder / "linked.s3", Listed(url, "0123", len(content)))
        return self._folder / "linked.s3"

    def _open(self, version: Listed) -> Part:
        return Part(self._contents[version.url])


class Part:
    """An object that is read in parts."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, first: int, count: int) -> bytes:
        return self._content[first : first + count]


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    return Objects(tmp_path, monkeypatch)


class Trap:
    """A loopback server and a file that nobody may read."""

    def __init__(self, folder: Path) -> None:
        self.secret = write_video(folder / "secret.ts", 20)
        self.requests: list[str] = []
        trap, content = self, self.secret.read_bytes()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trap.requests.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/h.ts"


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trap]:
    trap = Trap(tmp_path_factory.mktemp("trap"))
    with trap.server as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield trap
        server.shutdown()


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n"
PORTS = (18998, 18999)
SDP = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    f"m=video {PORTS[0]} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp2t">'
    '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>"
)
IMF = (
    '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">'
    "<Id>urn:uuid:0</Id><EditRate>25 1</EditRate></CompositionPlaylist>"
)
ANSI = "\x1b[2J\x1b[31mtext\n" * 50
# Names of files, and what is in them; {} is what they name.
PLAYLISTS = {
    "ffconcat": ("a.mp4", "ffconcat version 1.0\nfile {}\n"),
    "hls": ("a.m3u8", PLAYLIST + "#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"),
    "hls as mp4": ("a.mp4", PLAYLIST + "#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"),
    "hls by its name": ("a:b.m3u8?.mp4", PLAYLIST + "#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"),
    "master": ("a.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n"),
    "dash": ("a.mpd", DASH),
    "sdp": ("lake.mp4", SDP),
    "imf": ("a.xml", IMF),
    "image sequence": ("a%03d.jpg", "{}"),
    "text": ("a.ans", ANSI),
    "vobsub": ("a.idx", "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 0, filepos: 0\n"),
}
NAMING = [
    (kind, target)
    for kind, (_, text) in PLAYLISTS.items()
    for target in (("address", "file", "sibling") if "{}" in text else ("nothing",))
]


@contextmanager
def bound_ports() -> Iterator[set[int]]:
    """UDP ports that are bound meanwhile, by this process or another."""
    seen, ended = set[int](), threading.Event()

    def look() -> None:
        while not ended.wait(0.002):
            for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
                seen.add(int(line.split()[1].rpartition(":")[2], 16))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def refused(path: Path, *codes: str) -> None:
    """Reading a video fails with one of the codes, by one line."""
    with pytest.raises(VideoError) as caught:
        next(FrameSource(path).clips(1.0, SAMPLING))
    assert caught.value.code in codes, caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "target"), NAMING)
def test_a_file_that_names_others_is_refused(
    tmp_path: Path, trap: Trap, kind: str, target: str
) -> None:
    """Finding 3: as a file, whatever its suffix."""
    name, text = PLAYLISTS[kind]
    path = tmp_path / name
    write_any(tmp_path / "a001.jpg", "mjpeg")
    (tmp_path / "b.ts").write_bytes(trap.secret.read_bytes())
    named = {"address": trap.address, "file": trap.secret.as_uri(), "sibling": "b.ts"}.get(target)
    path.write_text(text.format(named))
    trap.requests.clear()
    # An image is what is in the file of that name.
    codes = ("unknown_container", "invalid_data", *["no_frames"] * (kind == "image sequence"))
    with bound_ports() as ports:
        refused(path, *codes)
    assert trap.requests == []
    assert not ports & set(PORTS)


@pytest.mark.parametrize(("kind", "target"), NAMING)
def test_an_object_that_names_others_is_refused(
    objects: Objects, trap: Trap, kind: str, target: str
) -> None:
    """Finding 4: as an object in S3, whatever its key."""
    name, text = PLAYLISTS[kind]
    named = {"address": trap.address, "file": trap.secret.as_uri(), "sibling": "b.ts"}.get(target)
    trap.requests.clear()
    with bound_ports() as ports:
        refused(
            objects.link(name, text.format(named).encode()), "unknown_container", "invalid_data"
        )
    assert trap.requests == []
    assert not ports & set(PORTS)


def test_a_delivered_playlist_brings_no_other_video(tmp_path: Path) -> None:
    """Finding 3: the proof of the audit; a row about it is a bad row."""
    write_video(tmp_path / "test-0000.mp4", 20)
    (tmp_path / "new-train-0000.mp4").write_text("ffconcat version 1.0\nfile test-0000.mp4\n")
    problem = VideoLibrary(tmp_path).problem("new-train-0000", 1.0)
    assert problem == "its video new-train-0000.mp4 cannot be read: unknown_container"


@pytest.mark.parametrize(
    "name", ["subfile,,start,0,end,0,,:secret.ts", "http://127.0.0.1/a.mp4", "a.jpg", "a%03d.jpg"]
)
def test_the_key_of_an_object_is_no_name_for_ffmpeg(
    objects: Objects, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 4: nothing of this machine is opened by it."""
    monkeypatch.chdir(tmp_path)
    for own in ("a.jpg", "a001.jpg", "video.jpg", "video", "secret.ts"):
        write_video(tmp_path / "own.ts", 20).rename(tmp_path / own)
    video = write_video(tmp_path / "b.mp4", 20, pts_ms=range(5000, 7000, 100))
    frames = Decoder(objects.link(name, video.read_bytes()), VideoLimits()).frames()
    assert sum(1 for _ in frames) == 20
    refused(objects.link(name, b"no video"), "invalid_data")


# Containers in which PyAV writes, and the codec for them.
WRITTEN = {
    "mp4": "libx264", "mov": "libx264", "m4v": "mpeg4", "3gp": "mpeg4", "mkv": "libx264",
    "webm": "libvpx", "avi": "mpeg4", "flv": "flv1", "ts": "libx264", "m2ts": "libx264",
    "mpg": "mpeg2video", "vob": "mpeg2video", "wmv": "wmv2", "asf": "wmv2", "ogv": "libvpx",
    "nut": "mpeg4", "h264": "libx264", "hevc": "libx265", "m2v": "mpeg2video", "mjpeg": "mjpeg",
    "gif": "gif", "apng": "apng", "swf": "flv1", "ivf": "libvpx", "obu": "libsvtav1",
    "y4m": "wrapped_avframe", "jpg": "mjpeg", "png": "png", "bmp": "bmp", "webp": "libwebp",
    "tiff": "tiff",
}  # fmt: skip
FRAMES = 10
FAST = {
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
}
OF_ONE_PICTURE = ("jpg", "png", "bmp", "webp", "tiff")


def write_any(path: Path, codec: str, size: tuple[int, int] = (352, 288)) -> Path:
    """Some frames of video, or a picture, in the container of the suffix."""
    pixels = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p", "png": "rgb24", "bmp": "bgr24"}
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = pixels.get(codec, "yuv420p")
        stream.options = FAST.get(codec, {})
        for number in range(1 if path.suffix[1:] in OF_ONE_PICTURE else FRAMES):
            picture = np.full((*size[::-1], 3), 8 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts = number
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", WRITTEN)
def test_containers_that_name_nothing_are_read_as_before(
    objects: Objects, tmp_path: Path, suffix: str
) -> None:
    """Findings 3 and 4: by their content, as FFmpeg reads them; also as objects."""
    try:
        path = write_any(tmp_path / f"a.{suffix}", WRITTEN[suffix])
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this build of FFmpeg does not write it: {error}")
    with av.open(str(path)) as plain:
        expected = [frame.to_ndarray(format="rgb24") for frame in plain.decode(video=0)]
    assert expected
    for video in (path, objects.link(path.name, path.read_bytes())):
        frames = [
            one.to_rgb((352, 288), SAMPLING, SCALER)
            for one in Decoder(video, VideoLimits()).frames()
        ]
        assert len(frames) == len(expected)
        assert np.allclose(frames, expected, atol=3)


def test_the_list_of_containers_names_those_of_ffmpeg() -> None:
    assert set(container._CONTAINERS) - av.formats_available == set()
    assert len(container._CONTAINERS) == len(set(container._CONTAINERS))
    names_others = {"concat", "hls", "dash", "sdp", "rtsp", "imf", "vobsub", "tty", "lavfi", "sap"}
    assert names_others & set(container._CONTAINERS) == set()


def test_sound_alone_is_called_that(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.mp4").rename(tmp_path / "b.mp4")
    refused(path, "no_video_stream")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """Findings 4 and 9: neither a pipe nor a socket is opened; a link to a file is."""
    os.mkfifo(tmp_path / "pipe.mp4")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket.mp4"))
    (tmp_path / "to_pipe.mp4").symlink_to("pipe.mp4")
    for name in ("pipe.mp4", "socket.mp4", "to_pipe.mp4", "/dev/zero", "/dev/null"):
        refused(tmp_path / name, "unreadable")
    listening.close()
    refused(tmp_path / "a\0b.mp4", "not_found")
    video = write_video(tmp_path / "a.mp4", 20)
    (tmp_path / "link.mp4").symlink_to(video)
    assert sum(1 for _ in Decoder(tmp_path / "link.mp4", VideoLimits()).frames()) == 20


# Pictures that are larger than their file says


def chunk(name: bytes, content: bytes) -> bytes:
    """A part of a PNG file."""
    whole = name + content
    return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))


def huge_png(path: Path, side: int, more: bytes = b"") -> Path:
    """A grey picture of `side` x `side` pixels, as a PNG file of some hundred kilobytes.

    `more` stands behind its header.
    """
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + side)) for _ in range(side)) + packer.flush()
    header = struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + more
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )
    return path


def in_mov(picture: Path, path: Path) -> Path:
    """A film of one picture, whose header says 160 x 96."""
    with av.open(str(path), "w") as target:
        stream = target.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "gray"
        target.start_encoding()
        packet = av.Packet(picture.read_bytes())
        packet.stream, packet.pts, packet.dts = stream, 0, 0
        packet.time_base, packet.is_keyframe = stream.time_base, True
        target.mux(packet)
    return path


PEAK = """
import re, sys
from pathlib import Path
from mrmodel.errors import VideoError
from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
try:
    list(FrameSource(sys.argv[1]).clips(1.0, FrameSampling(1, (224, 224))))
except VideoError as error:
    print(error.code, peak() - before)
"""


@pytest.mark.parametrize("wrapped", [True, False], ids=["mov", "png"])
def test_a_huge_picture_is_not_decoded(tmp_path: Path, wrapped: bool) -> None:
    """Finding 18: 262 million pixels, which take as many bytes."""
    path = huge_png(tmp_path / "a.png", 16200)
    if wrapped:
        path = in_mov(path, tmp_path / "a.mov")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    code, megabytes = done.stdout.split()
    assert code == "too_many_pixels"
    assert int(megabytes) < 100


LIMITED = """
import os, re, sys
from pathlib import Path
from mrmodel.errors import VideoError
from mrmodel.processes import limit_memory
from mrmodel.video.decoder import Decoder, VideoLimits
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
limit_memory((100 << 20) / (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
before = peak()
try:
    print(len(list(Decoder(Path(sys.argv[1]), VideoLimits(max_pixels=1 << 30)).frames())))
except VideoError as error:
    print(error.code, error.detail)
print(peak() - before)
"""
TOO_MUCH = "unreadable reading it takes more memory than this process may have"


@pytest.mark.parametrize(
    ("side", "wrapped"), [(96, True), (96, False), (11000, True)], ids=["mov", "png", "pixels"]
)
def test_a_picture_takes_no_more_memory_than_a_process_may(
    tmp_path: Path, side: int, wrapped: bool
) -> None:
    """A megabyte of text in a PNG picture is a gigabyte, which counts as no pixels."""
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(150 << 20), 1))
    path = huge_png(tmp_path / "a.png", side, text if side == 96 else b"")
    if wrapped:
        path = in_mov(path, tmp_path / "a.mov")
    assert path.stat().st_size < 2 << 20
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    found, megabytes = done.stdout.splitlines()
    assert found == ("1" if side == 96 else TOO_MUCH)  # FFmpeg goes on without the text.
    assert int(megabytes) < 110


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libx265", "mjpeg", "libvpx", "ffv1"])
def test_a_film_beyond_the_limit_is_called_that(tmp_path: Path, codec: str) -> None:
    """Finding 18: by its header, or by its pictures where the header is lost."""
    path = write_any(tmp_path / "a.mkv", codec, (1280, 768))
    assert sum(1 for _ in Decoder(path, VideoLimits(max_pixels=1280 * 768)).frames()) == FRAMES
    for limit in (1280 * 768 - 1, 352 * 288):
        with pytest.raises(VideoError, match=f"more.* {limit} |limit is {limit}") as caught:
            list(Decoder(path, VideoLimits(max_pixels=limit)).frames())
        # The decoder of FFV1 knows its size by the header alone.
        lost = codec == "ffv1" and limit == 352 * 288
        assert caught.value.code == ("no_frames" if lost else "too_many_pixels")


def test_a_film_that_becomes_larger(tmp_path: Path) -> None:
    """Finding 18: in its midst; as with other damage, the pictures before it are kept."""
    path = tmp_path / "a.ts"
    parts = [write_any(tmp_path / f"{n}.ts", "libx264", (352 * n, 288 * n)) for n in (1, 4)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert sum(1 for _ in Decoder(path, VideoLimits()).frames()) == 2 * FRAMES
    decoder = Decoder(path, VideoLimits(max_pixels=352 * 288))
    assert sum(1 for _ in decoder.frames()) == FRAMES
    assert decoder.bad_packets == FRAMES


# Compressed headers


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + kind + body


@pytest.mark.parametrize(
    "place", ["moov", "long size", "free", "behind a tag", "tag as a box", "linked"]
)
def test_a_compressed_header_is_not_unpacked(tmp_path: Path, objects: Objects, place: str) -> None:
    """1.7 MB of it took 1.5 GB of memory, before any limit was asked."""
    whole = write_video(tmp_path / "a.mp4", 20).read_bytes()
    begin = whole.rindex(b"moov") - 4
    (size,) = struct.unpack(">I", whole[begin : begin + 4])
    header, end = whole[begin : begin + size], whole[begin + size :]
    length = struct.pack(">I", len(header))
    packed = box(b"dcom", b"zlib"), box(b"cmvd", length, zlib.compress(header))
    moov = box(b"moov", box(b"cmov", *packed))
    if place == "long size":
        body = b"".join(packed)
        moov = box(b"moov", struct.pack(">I4sQ", 1, b"cmov", 16 + len(body)), body)
    if place == "free":
        moov = box(b"free", b"\0\0\0\0", box(b"cmov", *packed), b"\0" * 9)
    content = whole[:begin] + moov + end
    if place == "behind a tag":
        content = b"ID3\4\0\0\0\0\0\3abc" + content
    path = tmp_path / "b.mp4"
    path.write_bytes(content)
    if place == "tag as a box":  # With a hole of a gigabyte.
        path.write_bytes(b"ID3\4mdat\0\0" + bytes(50))
        with path.open("r+b") as file:
            file.seek(int.from_bytes(b"ID3\4"))
            file.write(moov + end)
    if place in ("moov", "long size", "tag as a box"):  # FFmpeg reads it, so the refusal is ours.
        with av.open(str(path)) as opened:
            assert opened.streams.video[0].frames == 20
    video = objects.link("b.mp4", content) if place == "linked" else path
    with pytest.raises(VideoError, match="unknown_container: its header is compressed"):
        Decoder(video, VideoLimits()).length_s()


# Time


def test_a_video_is_read_within_its_time(tmp_path: Path, objects: Objects) -> None:
    """Finding 15: reading ends in the midst of a file; the time of others does not count."""
    path = write_video(tmp_path / "a.mp4", 200)
    for video in (path, objects.link("a.mp4", path.read_bytes())):
        limits = VideoLimits(timeout_s=0.5)
        frames = Decoder(video, limits).frames()
        assert read_number(next(frames).to_rgb((160, 96), SAMPLING, SCALER)) == 0
        time.sleep(0.6)
        assert sum(1 for _ in frames) == 199
        for read in (
            lambda decoder: list(decoder.frames()),
            lambda decoder: decoder.length_s(),
        ):
            with pytest.raises(VideoError, match="timed_out: not read within 1e-06 s") as caught:
                read(Decoder(video, VideoLimits(timeout_s=1e-6)))
            failure = failure_of(VideoJob("a", video, ()), caught.value)
            assert not failure.lasting


@pytest.mark.parametrize("name", ["a.mkv", "a.m4v", "a.h264"])
def test_a_file_of_holes_takes_no_longer(tmp_path: Path, name: str) -> None:
    """Finding 15: a terabyte of nothing, which one call of FFmpeg would search."""
    path = tmp_path / name
    path.touch()
    if name == "a.mkv":  # Of the others, opening them is the long call.
        os.truncate(path, write_video(path, 20).stat().st_size // 2)
    os.truncate(path, 1 << 40)
    started = time.monotonic()
    with pytest.raises(VideoError, match="timed_out"):
        list(Decoder(path, VideoLimits(timeout_s=0.5)).frames())
    assert time.monotonic() - started < 10


def test_the_time_is_no_part_of_a_plan() -> None:
    """Partial results of workers with another limit of time, or of a version without one, stay."""
    info = describe_stream("tiny.video", "video", 2.0)
    assert extraction_plan(info, VideoLimits(timeout_s=1.0)) == extraction_plan(info, VideoLimits())
    assert set(extraction_plan(info, VideoLimits())["limits"]) == {
        *("max_duration_s", "max_pixels", "max_gap_s")
    }


# Nobody else opens anything


OPENER = "mrmodel.video.container"
OPENING = {"open", "Container", "InputContainer"}
# Other packages that read videos.
OTHERS = {"cv2", "decord", "torchcodec", "torchaudio", "imageio", "moviepy", "ffmpeg", "ffprobe"}


def imports_of(tree: ast.AST) -> dict[str, str]:
    """Name in a module -> what it imports under it."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            for one in node.names:
                found[one.asname or one.name.partition(".")[0]] = (
                    one.name if one.asname else one.name.partition(".")[0]
                )
    return found


def opened_in(tree: ast.AST) -> list[str]:
    """How a module opens media by PyAV: r, or w where it only writes."""
    imported, modes = imports_of(tree), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            mode = node.args[1] if len(node.args) > 1 else None
            modes[node.func] = isinstance(mode, ast.Constant) and mode.value == "w"
    found = []
    for node in ast.walk(tree):
        head, _, rest = dotted(node).partition(".")
        name = ".".join(filter(None, (imported.get(head), rest))).split(".")
        if name[0] == "av" and name[-1] in OPENING:
            found.append("w" if modes.get(node) else "r")
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import av\nav.open(p)", ["r"]),
        ("import av as x\nx.container.open(p, 'r')", ["r"]),
        ("import av.container\nav.container.open(p)", ["r"]),
        ("from av import open\nopen(p)", ["r"]),
        ("from av.container import InputContainer as C\nC(p)", ["r"]),
        ("from av import container\ncontainer.open(p)", ["r"]),
        ("import av\nopener = av.open", ["r"]),
        ("import av\nav.open(p, mode)", ["r"]),
        ("import av\nav.open(p, 'w')", ["w"]),
        ("open(p)\npath.open()", []),
    ],
)
def test_opening_is_seen(source: str, found: list[str]) -> None:
    assert opened_in(ast.parse(source)) == found


def test_one_place_opens_media() -> None:
    """Findings 3, 4, 9: what `container` refuses is read nowhere else.

    `benchmarks` is left out: one of them is about PyAV itself.
    """
    ours = {name: tree for name, tree in MODULES.items() if not name.startswith("benchmarks")}
    opened = {name: opened_in(tree) for name, tree in ours.items()}
    assert {name for name, how in opened.items() if "r" in how} == {OPENER}
    assert opened[OPENER] == ["r"]
    for name, tree in ours.items():
        words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        packages = {one.partition(".")[0] for one in imports_of(tree).values()}
        assert not OTHERS & (words | packages), name
