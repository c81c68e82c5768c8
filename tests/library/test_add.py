"""What a library holds after its files were added, moved, copied, changed, damaged and removed."""

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from mrmodel.encoders.base import build_encoder
from mrmodel.errors import LibraryError
from mrmodel.features.extraction.encode import encode_video
from mrmodel.files import sha256_of
from mrmodel.library.folder import LibraryFolder
from tests.library.videos import CLIP_LEN_S, add, content, write_videos

LENGTHS = {"a.mp4": 20, "b.mp4": 41, "sub/c.mp4": 30}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `videos` and the library `library` of them; only to be read."""
    base = tmp_path_factory.mktemp("made")
    (base / "videos/sub").mkdir(parents=True)
    write_videos(base / "videos", LENGTHS)
    (base / "videos/notes.txt").write_text("no video")
    add(base / "library", [base / "videos"])
    return base


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the videos, and a library of it."""
    shutil.copytree(made / "videos", tmp_path / "videos")
    add(tmp_path / "library", [tmp_path / "videos"])
    return tmp_path


def rows_of(library: Path, path: Path) -> np.ndarray:
    folder = LibraryFolder(library)
    (stream,) = folder.streams()
    return folder.rows_of(stream).gather([sha256_of(path)])[0][0]


def test_rows_are_those_of_the_encoder(made: Path) -> None:
    for name in LENGTHS:
        path = made / "videos" / name
        expected = encode_video(path, build_encoder("tiny.video"), CLIP_LEN_S).rows
        np.testing.assert_array_equal(rows_of(made / "library", path), expected)
    folder = LibraryFolder(made / "library")
    assert [file.path.name for file in folder.files()] == ["a.mp4", "b.mp4", "c.mp4"]
    rows = folder.rows_of(folder.streams()[0])
    stored = np.concatenate(rows.maps).astype(np.float32)
    np.testing.assert_allclose(rows.norms, np.linalg.norm(stored, axis=1), rtol=1e-6)
    assert sorted(path.name for path in (made / "library").iterdir()) == ["library.sqlite", "rows"]
    (shard,) = (made / "library").rglob("shard-*.npy")
    np.testing.assert_array_equal(np.load(shard), stored.astype(np.float16))


def test_what_is_known_is_not_encoded_again(copy: Path) -> None:
    videos, before = copy / "videos", content(copy / "library")
    report = add(copy / "library", [videos])
    assert (report.encoded, report.unchanged) == ([], 3)
    assert content(copy / "library") == before, "not one byte is written"
    (videos / "a.mp4").rename(videos / "moved.mp4")
    shutil.copy(videos / "b.mp4", videos / "sub/copy.mp4")
    (videos / "sub/c.mp4").touch()
    report = add(copy / "library", [videos])
    assert report.encoded == []
    assert report.moved == {videos / "moved.mp4": videos / "a.mp4"}
    assert report.duplicates == {videos / "sub/copy.mp4": videos / "b.mp4"}
    folder = LibraryFolder(copy / "library")
    assert [file.path.name for file in folder.files()] == [
        "b.mp4",
        "moved.mp4",
        "c.mp4",
        "copy.mp4",
    ]
    assert len(folder.videos()) == 3


def test_a_changed_file_is_encoded_and_its_old_rows_go(copy: Path, made: Path) -> None:
    videos, library = copy / "videos", copy / "library"
    write_videos(videos, {"b.mp4": 62})
    report = add(library, [videos])
    assert (report.encoded, report.removed) == ([videos / "b.mp4"], 1)
    assert len(rows_of(library, videos / "b.mp4")) == 3
    shards = list(library.rglob("shard-*.npy"))
    assert len(np.load(shards[0])) == 1 + 3 + 1
    assert [one.name for one in shards] == ["shard-00001.npy"]
    for name in LENGTHS:
        expected = encode_video(videos / name, build_encoder("tiny.video"), CLIP_LEN_S).rows
        np.testing.assert_array_equal(rows_of(library, videos / name), expected)


def test_damaged_files_are_reported_each_time_and_the_others_added(copy: Path) -> None:
    videos, library = copy / "videos", copy / "library"
    (videos / "aa.mp4").write_bytes(b"no video at all" * 99)
    (videos / "zz.mp4").symlink_to("nowhere.mp4")
    write_videos(videos, {"new.mp4": 83})
    report = add(library, [videos])
    assert report.encoded == [videos / "new.mp4"]
    assert set(report.problems) == {videos / "aa.mp4", videos / "zz.mp4"}
    assert "invalid_data" in report.problems[videos / "aa.mp4"]
    assert "no such file" in report.problems[videos / "zz.mp4"]
    again = add(library, [videos])
    assert (again.problems, again.unchanged) == (report.problems, 4)
    write_videos(videos, {"aa.mp4": 104})
    assert add(library, [videos]).encoded == [videos / "aa.mp4"]


def test_a_file_that_cannot_be_read_for_a_while_keeps_its_rows(copy: Path) -> None:
    videos, library = copy / "videos", copy / "library"
    before = content(library)
    (videos / "b.mp4").rename(copy / "away.mp4")
    report = add(library, [videos / "b.mp4"])
    assert list(report.problems) == [videos / "b.mp4"]
    assert content(library) == before


def test_shards_are_closed_and_copied_without_what_was_removed(made: Path, tmp_path: Path) -> None:
    add(tmp_path / "library", [made / "videos"], shard_bytes=128 + 3 * 64)
    folder = LibraryFolder(tmp_path / "library")
    assert [len(one) for one in folder.rows_of(folder.streams()[0]).maps] == [3, 1]
    with folder.writing():
        folder.delete_files([made / "videos/b.mp4"])
        assert folder.delete_unused() == 1
    assert [len(one) for one in folder.rows_of(folder.streams()[0]).maps] == [1, 1]
    expected = encode_video(made / "videos/a.mp4", build_encoder("tiny.video"), CLIP_LEN_S).rows
    np.testing.assert_array_equal(rows_of(tmp_path / "library", made / "videos/a.mp4"), expected)


def test_another_writer_is_refused(copy: Path) -> None:
    folder = LibraryFolder(copy / "library")
    with (
        folder.writing(),
        pytest.raises(LibraryError, match="another process is changing this library"),
        LibraryFolder(copy / "library").writing(),
    ):
        pass


def test_what_is_no_library_is_one_line(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="no library there"):
        LibraryFolder(tmp_path / "nothing")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/library.sqlite").write_text("this is no database, but a text" * 99)
    with pytest.raises(LibraryError, match="file is not a database"):
        LibraryFolder(tmp_path / "text")
    database = sqlite3.connect(copy / "library/library.sqlite")
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(LibraryError, match="a library of format 7; this version reads 1"):
        LibraryFolder(copy / "library")


def test_lost_rows_are_one_line(copy: Path) -> None:
    (shard,) = (copy / "library").rglob("shard-*.npy")
    shard.write_bytes(shard.read_bytes()[:-1])
    folder = LibraryFolder(copy / "library")
    with pytest.raises(LibraryError, match=r"shard-00000.npy: is missing or has lost rows"):
        folder.rows_of(folder.streams()[0])
    with pytest.raises(LibraryError, match="has lost rows"), folder.writing():
        pass
