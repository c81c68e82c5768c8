"""Videos that lie in S3: read in parts, equal to local ones, and never cut short in silence."""

import json
import secrets
import threading
import tracemalloc
from functools import partial
from pathlib import Path

import boto3
import numpy as np
import pytest

from mrmodel.errors import FeatureError, VideoError
from mrmodel.features.extraction.extract import ExtractionSummary, extract_videos
from mrmodel.features.extraction.job_runner import ExtractionSettings
from mrmodel.features.index import read_index
from mrmodel.features.store import FeatureStore
from mrmodel.files import sha256_of
from mrmodel.storage import ENDPOINT_VARIABLE, Listed, open_object
from mrmodel.storage.s3 import S3Object
from mrmodel.video import remote
from mrmodel.video.decoder import Decoder, VideoLimits
from mrmodel.video.frames import FrameSource
from mrmodel.video.remote import BLOCK_BYTES, RemoteVideo, read_video_pointer, write_pointer
from mrmodel.video.sampling import FrameSampling
from tests.services import S3Service

from .fixtures import write_video
from .test_damaged_files import cut, overwrite

SAMPLING = FrameSampling(2, None)
ENCODER = "tiny.video"


class Bucket:
    """A place in the bucket that videos are put into, and pointers to them."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.client = boto3.session.Session().client("s3", endpoint_url=endpoint)
        self.prefix, self.folder = secrets.token_hex(8), folder

    def put(self, name: str, content: bytes) -> Listed:
        key = f"{self.prefix}/{name}"
        answer = self.client.put_object(Bucket="mrmodel", Key=key, Body=content)
        return Listed(f"s3://mrmodel/{key}", answer["ETag"].strip('"'), len(content))

    def link(self, video: Path) -> Path:
        """Put a file into the bucket; a pointer to it."""
        pointer = self.folder / f"{video.stem}.s3"
        write_pointer(pointer, self.put(video.name, video.read_bytes()))
        return pointer

    def remove(self, name: str) -> None:
        self.client.delete_object(Bucket="mrmodel", Key=f"{self.prefix}/{name}")


@pytest.fixture
def bucket(s3_env: S3Service, tmp_path: Path) -> Bucket:
    (tmp_path / "pointers").mkdir()
    return Bucket(s3_env.url, tmp_path / "pointers")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The parts that were read of objects: (first byte, bytes)."""
    seen: list[tuple[int, int]] = []
    read = S3Object.read

    def noted(self: S3Object, first: int, count: int) -> bytes:
        seen.append((first, count))
        return read(self, first, count)

    monkeypatch.setattr(S3Object, "read", noted)
    return seen


def large_video(path: Path, **options: object) -> Path:
    """Eighteen MB in 12 s."""
    return write_video(path, 120, size=(640, 480), gop=30, **options)


def pictures(path: Path) -> list[np.ndarray]:
    return [clip.frames for clip in FrameSource(path).clips(1.0, SAMPLING)]


def code_of(path: Path) -> str:
    source = FrameSource(path)
    with pytest.raises(VideoError) as caught:
        list(source.clips(1.0, SAMPLING))
    assert source.report.status == "failed"
    assert source.report.reason == caught.value.code
    assert str(path) in str(caught.value)
    return caught.value.code


def test_a_pointer_comes_back_as_it_was_written(tmp_path: Path) -> None:
    version = Listed("s3://bucket/a b/é.mp4", "0123-4", 1 << 40)
    write_pointer(tmp_path / "a.s3", version)
    assert read_video_pointer(tmp_path / "a.s3") == version
    assert json.loads((tmp_path / "a.s3").read_text()) == {
        "url": "s3://bucket/a b/é.mp4",
        "etag": "0123-4",
        "bytes": 1 << 40,
    }


GOOD = {"url": "s3://bucket/a.mp4", "etag": "0123", "bytes": 5}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{",
        *(
            json.dumps({key: value for key, value in GOOD.items() if key != left}).encode()
            for left in GOOD
        ),
        *(
            json.dumps(GOOD | change).encode()
            for change in (
                {"more": 1},
                {"bytes": -1},
                {"bytes": "5"},
                {"bytes": 1.5},
                {"bytes": True},
                {"etag": ""},
                {"etag": "a\r\nHost: b"},
                {"url": "https://bucket/a.mp4"},
                {"url": "s3://bucket"},
            )
        ),
        np.random.default_rng(0).bytes(1 << 17),
    ],
)
def test_what_is_no_pointer(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.s3"
    path.write_bytes(content)
    assert code_of(path) == "invalid_pointer"


def test_a_pointer_shows_no_password(tmp_path: Path) -> None:
    path = tmp_path / "a.s3"
    path.write_text(json.dumps(GOOD | {"url": "s3://key:planted@bucket/a.mp4"}))
    with pytest.raises(VideoError, match="invalid_pointer: url: ") as caught:
        read_video_pointer(path)
    assert "planted" not in str(caught.value)


def test_no_pointer_at_all(tmp_path: Path) -> None:
    assert code_of(tmp_path / "none.s3") == "not_found"
    (tmp_path / "folder.s3").mkdir()
    assert code_of(tmp_path / "folder.s3") == "unreadable"


def damaged_in_the_middle(path: Path) -> Path:
    return overwrite(path, path.stat().st_size // 2, 4096)


@pytest.fixture(scope="module")
def local_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good and damaged videos in several containers; plain mp4 has its index at the end."""
    folder = tmp_path_factory.mktemp("local")
    front = {"options": {"movflags": "faststart"}}
    paths = [
        write_video(folder / "end.mp4", 60, gop=15),
        write_video(folder / "front.mp4", 60, gop=15, **front),
        write_video(folder / "matroska.mkv", 60, gop=15),
        write_video(folder / "transport.ts", 60, gop=15),
        damaged_in_the_middle(write_video(folder / "damaged.mp4", 150, 30, gop=15)),
        damaged_in_the_middle(write_video(folder / "damaged2.mkv", 150, 30, gop=15)),
        cut(write_video(folder / "cut.mp4", 150, 30, gop=15, **front), 0.6),
        cut(write_video(folder / "cut2.mkv", 150, 30, gop=15), 0.6),
        cut(write_video(folder / "no_index.mp4", 60), 0.6),
        write_video(folder / "stays.mp4", 40),
    ]
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    paths += [folder / "empty.mp4", folder / "noise.mp4"]
    return {path.stem: path for path in paths}


def extract(
    videos: dict[str, Path], folder: Path, workers: int = 1, failed: float = 1.0
) -> ExtractionSummary:
    settings = ExtractionSettings(folder / "work", workers=workers, max_failed_share=failed)
    return extract_videos(videos, ENCODER, 1.0, folder / "store", settings)


def rows_of(folder: Path, vid: str) -> np.ndarray:
    block, _ = FeatureStore(folder / "store").gather([vid])
    return block


def test_a_mixed_folder_gives_the_rows_of_local_files(
    bucket: Bucket, local_videos: dict[str, Path], tmp_path: Path
) -> None:
    mixed = {
        vid: path if vid == "stays" else bucket.link(path) for vid, path in local_videos.items()
    }
    expected = extract(local_videos, tmp_path / "local")
    found = extract(mixed, tmp_path / "mixed", workers=2)
    assert found.problems == expected.problems
    assert (found.n_ok, found.n_partial, found.n_failed) == (6, 3, 3), found.problems
    assert found.n_rows == expected.n_rows
    stores = tmp_path / "local/store", tmp_path / "mixed/store"
    shards = [sorted(store.glob("shard-*")) for store in stores]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
    for ours, theirs in zip(*map(read_index, stores), strict=True):
        assert ours.entry.duration_s == theirs.entry.duration_s
        if theirs.entry.src_sha256:
            assert theirs.entry.src_sha256 == sha256_of(mixed[theirs.entry.key])


def test_an_object_that_changed_costs_its_own_video(
    bucket: Bucket, local_videos: dict[str, Path], tmp_path: Path
) -> None:
    videos = {vid: bucket.link(local_videos[vid]) for vid in ("end", "front", "matroska")}
    new = bucket.put("front.mp4", local_videos["stays"].read_bytes())
    bucket.remove("matroska.mkv")
    summary = extract(videos, tmp_path)
    assert (summary.n_ok, summary.n_failed) == (1, 2)
    assert summary.problems["front"].startswith(f"changed: s3://mrmodel: key '{bucket.prefix}/fr")
    assert summary.problems["matroska"].startswith("not_found: s3://mrmodel: key ")
    write_pointer(videos["front"], new)  # as `mrmodel data link` does
    with pytest.raises(FeatureError, match=r"1 of 3 videos .*matroska: not_found"):
        extract(videos, tmp_path / "again", failed=0.1)


@pytest.mark.parametrize("name", ["front.mp4", "plain.mp4", "large.mkv"])
@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_change_in_mid_video_is_no_end_of_it(
    bucket: Bucket, tmp_path: Path, name: str, change: str
) -> None:
    options = {"options": {"movflags": "faststart"}} if name == "front.mp4" else {}
    video = large_video(tmp_path / name, **options)
    pointer = bucket.link(video)
    source = FrameSource(pointer)
    clips = source.clips(1.0, SAMPLING)
    next(clips)
    if change == "replaced":
        bucket.put(name, video.read_bytes()[::-1])
    else:
        bucket.remove(name)
    code = "changed" if change == "replaced" else "not_found"
    with pytest.raises(VideoError) as caught:
        list(clips)
    assert caught.value.code == source.report.reason == code
    assert source.report.status == "failed"
    assert 1 <= source.report.n_clips < 11


def test_an_interruption_of_the_user_is_no_end_of_a_video(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = FrameSource(bucket.link(large_video(tmp_path / "a.mkv"))).clips(1.0, SAMPLING)
    next(clips)

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(S3Object, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(clips)


@pytest.mark.parametrize("name", ["plain.mp4", "large.mkv", "large.ts"])
def test_a_video_is_fetched_once_and_in_large_parts(
    bucket: Bucket, reads: list[tuple[int, int]], tmp_path: Path, name: str
) -> None:
    video = large_video(tmp_path / name)
    pointer = bucket.link(video)
    assert np.array_equal(pictures(pointer), pictures(video))
    size = video.stat().st_size
    assert size > 16 << 20
    assert size <= sum(count for _, count in reads) < size + 4 * BLOCK_BYTES
    assert len(reads) < 14


@pytest.mark.parametrize("name", ["plain.mp4", "long.mkv"])
def test_a_first_frame_costs_little(
    bucket: Bucket, reads: list[tuple[int, int]], tmp_path: Path, name: str
) -> None:
    video = write_video(tmp_path / name, 2000, 30, gop=30)
    decoder = Decoder(bucket.link(video), VideoLimits())
    next(decoder.frames())
    assert decoder.container_s == pytest.approx(2000 / 30, abs=0.2)
    size = video.stat().st_size
    assert size > 12 << 20
    assert sum(count for _, count in reads) < size / 6


def test_memory_does_not_grow_with_the_object(bucket: Bucket, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(80 << 20)
    write_pointer(tmp_path / "a.s3", bucket.put("a", content))
    video, position = RemoteVideo(tmp_path / "a.s3", lambda: None), 0
    tracemalloc.start()
    try:
        while part := video.read(32768):
            assert content[position : position + len(part)] == part
            position += len(part)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert position == len(content)
    assert video.error is None


@pytest.mark.parametrize(
    ("n_bytes", "stretch"), [(3 * BLOCK_BYTES + 100, 1000), (24 << 20, 9 << 20)]
)
def test_a_remote_file_behaves_like_a_file(
    bucket: Bucket, tmp_path: Path, n_bytes: int, stretch: int
) -> None:
    content = np.random.default_rng(1).bytes(n_bytes)
    local = tmp_path / "local"
    local.write_bytes(content)
    write_pointer(tmp_path / "a.s3", bucket.put("a", content))
    video = RemoteVideo(tmp_path / "a.s3", lambda: None)
    random = np.random.default_rng(2)
    with local.open("rb") as file:
        for whence in random.integers(0, 3, 40).tolist():
            offset = int(random.integers(-n_bytes, n_bytes))
            position = video.seek(offset, whence)
            if position < 0:
                with pytest.raises((OSError, ValueError)):
                    file.seek((0, file.tell(), n_bytes)[whence] + offset)
                continue
            assert file.seek(offset, whence) == position == video.tell()
            end = position + int(random.integers(1, stretch))
            while video.tell() < end and (part := video.read(32768)):
                assert file.read(len(part)) == part
            assert video.tell() >= min(end, n_bytes)
            file.seek(video.tell())
    assert video.error is None


def test_the_server_may_be_away_for_a_while(
    own_s3: S3Service, local_videos: dict[str, Path], tmp_path: Path
) -> None:
    bucket = Bucket(own_s3.url, tmp_path)
    names = ("end", "matroska", "damaged", "cut")
    local = {vid: local_videos[vid] for vid in names}
    local["large"] = large_video(tmp_path / "large.mkv")
    extract(local, tmp_path / "local")
    linked = {vid: bucket.link(path) for vid, path in local.items()}
    clips = FrameSource(linked["large"]).clips(1.0, SAMPLING)
    first = next(clips)
    own_s3.kill()
    returns = threading.Event()

    def come_back() -> None:
        returns.set()
        own_s3.start()

    back = threading.Timer(4, come_back)
    back.start()
    extract(linked, tmp_path / "remote", workers=2)
    assert returns.is_set()
    back.join()
    rest = [clip.frames for clip in clips]
    assert np.array_equal([first.frames, *rest], pictures(local["large"]))
    for vid in local:
        assert (rows_of(tmp_path / "local", vid) == rows_of(tmp_path / "remote", vid)).all()


@pytest.mark.slow
def test_a_server_that_stays_away_fails_videos_which_may_be_tried_again(
    own_s3: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(own_s3.url, tmp_path)
    pointer = bucket.link(large_video(tmp_path / "a.mkv"))
    monkeypatch.setattr(remote, "open_object", partial(open_object, patience_s=1.0))
    source = FrameSource(pointer)
    clips = source.clips(1.0, SAMPLING)
    next(clips)
    own_s3.kill()
    with pytest.raises(VideoError, match=r"unreadable: .*cannot be reached"):
        list(clips)
    assert (source.report.status, source.report.reason) == ("failed", "unreadable")
    assert code_of(pointer) == "unreadable"


def test_wrong_credentials_are_said_and_never_repeated(
    bucket: Bucket, s3_env: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointer, planted = bucket.link(write_video(tmp_path / "a.mp4", 20)), secrets.token_hex(16)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", planted)
    # A client is made once for each address, and this one names the same server.
    monkeypatch.setenv(ENDPOINT_VARIABLE, s3_env.url.replace("127.0.0.1", "localhost"))
    with pytest.raises(VideoError, match="unreadable: s3://mrmodel: key ") as caught:
        pictures(pointer)
    assert "the secret key is wrong" in str(caught.value)
    assert planted not in f"{caught.value!r} {caught.getrepr(style='long')}"
