"""Sentences of subtitle files and tracks, and which of them fit a query."""

import time
import zlib
from pathlib import Path

import pytest

from mrmodel.errors import VideoError
from mrmodel.library.folder import LibraryFolder, Sentence
from mrmodel.library.words import Sidecars, read_sidecars, read_tracks, search_words, to_sentences
from mrmodel.video.subtitles import read_subtitle_tracks
from tests.library.subtitles import add_mp4_track, add_track
from tests.library.videos import add
from tests.video.fixtures import write_video

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>The cars were</i>

2
00:00:02,600 --> 00:00:03,000
turning left.
"""
SAID = [Sentence(1.0, 3.0, "The cars were turning left.")]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "lake.mp4", 40)


def test_a_track_and_a_file_give_the_same_sentences(video: Path, tmp_path: Path) -> None:
    srt = tmp_path / "lake.srt"
    srt.write_text(SRT)
    captions = [(1.0, 2.5, "The cars were"), (2.6, 3.0, "turning left.")]
    assert read_sidecars([srt]) == (SAID, "")
    assert read_tracks(add_track(video, srt, tmp_path / "lake.mkv")) == SAID
    assert read_tracks(add_mp4_track(video, captions, tmp_path / "lake.mp4")) == SAID
    assert read_tracks(video) == []
    assert read_tracks(tmp_path / "nothing.mkv") == []


def test_captions_become_sentences() -> None:
    def said(*captions: tuple[float, float, str]) -> list[tuple[float, float, str]]:
        found = to_sentences(Sentence(*one) for one in captions)
        return [(one.start_s, one.end_s, one.text) for one in found]

    assert said((5, 6, "two"), (1, 2, "One."), (2, 3, " \n ")) == [(1, 2, "One."), (5, 6, "two")]
    assert said((1, 2, "a long"), (3.6, 4, "pause")) == [(1, 2, "a long"), (3.6, 4, "pause")]
    assert said((1, 2, 'he said "no."'), (2, 3, "Then")) == [
        (1, 2, 'he said "no."'),
        (2, 3, "Then"),
    ]
    rolling = said((1, 2, "it rolls"), (2, 3, "it rolls\nup the"), (3, 4, "up the\nscreen"))
    assert rolling == [(1, 4, "it rolls up the screen")]
    assert said((1, 2, "<v Bob>Hello</v> there")) == [(1, 2, "Hello there")]
    endless = said(*((i, i + 1, f"word{i}") for i in range(100)))
    assert len(endless) > 1
    assert max(len(text) for *_, text in endless) <= 240


def test_files_of_any_language_belong_to_the_video_of_their_name(tmp_path: Path) -> None:
    for name in (
        "a.srt",
        "a.en.vtt",
        "a.pt-BR.SRT",
        "a.2.srt",
        "ab.srt",
        "a.txt",
        "a.en.forced.srt",
    ):
        (tmp_path / name).write_text("")
    found = Sidecars().of(tmp_path / "a.mp4")
    assert [path.name for path in found] == ["a.en.forced.srt", "a.en.vtt", "a.pt-BR.SRT", "a.srt"]
    assert [path.name for path in Sidecars().of(tmp_path / "a.2.mp4")] == ["a.2.srt"]


def test_a_file_in_another_encoding_is_left_out_with_a_note(tmp_path: Path) -> None:
    srt = tmp_path / "lake.srt"
    srt.write_bytes(SRT.replace("cars", "b\xe4ren").encode("latin-1"))
    sentences, note = read_sidecars([srt, tmp_path / "gone.vtt"])
    assert sentences == []
    assert f"{srt}:3: not UTF-8 text: byte 0xe4 at column 9" in note
    assert "gone.vtt: no such file" in note
    (tmp_path / "junk.vtt").write_text("no subtitles\n" * 9)
    assert read_sidecars([tmp_path / "junk.vtt"]) == ([], "")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> LibraryFolder:
    base = tmp_path_factory.mktemp("words")
    said = {
        "a": "A rocket was launched into the sky.",
        "b": "The launch, it is over; the sky is blue.",
        "c": "Über den Wolken",
        "d": "The the the and into it.",
    }
    for number, (name, text) in enumerate(said.items()):
        write_video(base / f"{name}.mp4", 20 + number)
        (base / f"{name}.srt").write_text(f"1\n00:00:00,000 --> 00:00:01,000\n{text}\n")
    add(base / "library", [base])
    return LibraryFolder(base / "library")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("rockets launching", "ab"),
        ("the launch of a rocket in the blue sky", "ab"),
        ("A rocket in the sky", "ab"),
        ("a green rocket garden", ""),
        ("into the", ""),
        ("uber", "c"),
        ('say "launch" OR (*', "ab"),
        ("NEAR AND NOT", ""),
    ],
)
def test_what_fits_a_query(library: LibraryFolder, query: str, found: str) -> None:
    names = {video.id: library.paths_of(video.id)[0].stem for video in library.videos()}
    assert sorted(names[video] for video in search_words(library, query)) == list(found)


def test_words_follow_their_files(video: Path, tmp_path: Path) -> None:
    def texts() -> list[str]:
        folder = LibraryFolder(tmp_path / "library")
        return [one.text for one in search_words(folder, "turning").values()]

    srt, mkv = tmp_path / "lake.srt", tmp_path / "lake.mkv"
    srt.write_text(SRT.replace("cars", "boats"))
    add_track(video, srt, mkv)
    srt.write_text(SRT)
    add(tmp_path / "library", [mkv])
    folder = LibraryFolder(tmp_path / "library")
    assert sorted(one.text for _, one, _ in folder.sentences_about("turning", "*", 9)) == [
        "The boats were turning left.",
        "The cars were turning left.",
    ]
    srt.write_text(SRT.replace("cars", "buses"))
    report = add(tmp_path / "library", [mkv])
    assert (report.encoded, report.unchanged) == ([], 1)
    assert [video.sha256 for video in folder.videos()] == [folder.files()[0].sha256]
    found = {one.text for _, one, _ in folder.sentences_about("turning", "*", 9)}
    assert found == {"The boats were turning left.", "The buses were turning left."}
    mkv.rename(tmp_path / "sea.mkv")
    add(tmp_path / "library", [tmp_path / "sea.mkv"])
    assert texts() == ["The boats were turning left."]
    with folder.writing():
        folder.delete_files([tmp_path / "sea.mkv"])
        folder.delete_unused()
    assert texts() == []


@pytest.mark.parametrize("text", ["{" * 200_000, "<a" * 200_000, "a" + "\n" * 200_000 + "a"])
def test_a_caption_that_takes_hours_to_parse_is_left_out(tmp_path: Path, text: str) -> None:
    """Time grew with the square of its length: two minutes for a megabyte, unlimited."""
    srt = tmp_path / "lake.srt"
    srt.write_text(f"WEBVTT\n\nNOTE {'n' * 9000}\n\n00:01.000 --> 00:02.000\n{text}\n")
    started = time.process_time()
    sentences, note = read_sidecars([srt.rename(tmp_path / "lake.vtt")])
    assert time.process_time() - started < 2
    assert (sentences, note.partition(": ")[2]) == ([], "a caption has more than 4000 characters")


def test_a_long_note_before_the_captions_is_none(tmp_path: Path) -> None:
    vtt = tmp_path / "lake.vtt"
    vtt.write_text(f"WEBVTT\n\nNOTE {'n' * 9000}\n\n00:01.000 --> 00:03.000\n{SAID[0].text}\n")
    assert read_sidecars([vtt]) == (SAID, "")


def packed_track(path: Path, text: str, events: int) -> Path:
    """Matroska with a track of equal captions, each of which is compressed."""

    def number(value: int) -> bytes:
        return value.to_bytes(4)

    def element(name: str, *content: bytes) -> bytes:
        body = b"".join(content)
        return bytes.fromhex(name) + (1 << 56 | len(body)).to_bytes(8) + body

    head = element("1A45DFA3", element("4282", b"matroska"))
    compression = element("5034", element("4254", number(0)))  # zlib
    encoding = element("6D80", element("6240", compression))
    kind = element("83", number(17)), element("86", b"S_TEXT/UTF8")
    track = element("AE", element("D7", number(1)), element("73C5", number(1)), *kind, encoding)
    captions = [
        element(
            "A0",
            element("A1", b"\x81" + (3000 * place).to_bytes(2) + b"\0", packed),
            element("9B", number(1000)),
        )
        for place, packed in enumerate([zlib.compress(text.encode(), 9)] * events)
    ]
    cluster = element("1F43B675", element("E7", number(0)), *captions)
    path.write_bytes(head + element("18538067", element("1654AE6B", track), cluster))
    return path


def test_a_small_track_of_gigabytes_is_left_out(tmp_path: Path) -> None:
    """A kilobyte of a file is a megabyte of captions, and took minutes."""
    path = packed_track(tmp_path / "a.mkv", "Hello.", 3)
    assert [one.text for one in read_tracks(path)] == ["Hello."]
    assert read_tracks(packed_track(path, "{" * 200_000, 3)) == []
    packed_track(path, "a" * (1 << 20), 10)
    assert path.stat().st_size < 20_000
    with pytest.raises(VideoError, match="too_long: its subtitles have more than 4 MB"):
        list(read_subtitle_tracks(path, 4 << 20))
