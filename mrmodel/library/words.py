"""What is said in a video: subtitle files beside it and subtitle tracks inside, as sentences."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pysubs2
from pysubs2.formats.subrip import SubripFormat
from pysubs2.formats.webvtt import WebVTTFormat

from mrmodel.errors import DataError, MrModelError, reason_of
from mrmodel.features.keys import normalise_query
from mrmodel.files import read_text
from mrmodel.library.folder import LibraryFolder, Sentence
from mrmodel.video.subtitles import read_subtitle_tracks

# Subtitle files beside ``lake.mp4``: ``lake.srt``, ``lake.en.vtt`` ...
_FORMATS = {".srt": "srt", ".vtt": "vtt"}
_LANGUAGE = re.compile(r"(\.[A-Za-z][A-Za-z0-9-]{1,9}){1,2}$")
# An hour of speech has a tenth of a megabyte.
_MOST_BYTES = 16 << 20
# Characters of a caption. Reading tags takes time that grows with the square of it.
_LONGEST_CAPTION = 4000
# Captions are joined to sentences up to a pause, or up to so many characters.
_PAUSE_S = 1.5
_LONGEST = 240
_ENDS = re.compile(r"[.!?…。！？][\"'”’)\]]*$")
_TAGS = re.compile(r"<[^<>]*>")
# Sentences that are read of the index; the best one of a video counts.
_CANDIDATES = 2000
_MARK = "\x01"
_MARKED = re.compile(f"{_MARK}([^{_MARK}]*){_MARK}")
# English words that say nothing about what is said or seen.
_EMPTY_WORDS = """
a about above after again all also am an and any are as at be been before being below but by can
could did do does doing down for from had has have having he her here hers him his how i if in into
is it its just me my no not of off on once one only or other our out over own s she so some someone
something t than that the their them then there these they this those through to too under until up
very was we were what when where which while who whom why will with would you your
"""
_EMPTY = frozenset(_EMPTY_WORDS.split())


class Sidecars:
    """Subtitle files beside videos; each folder is listed once."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def of(self, video: Path) -> list[Path]:
        """Those of one video, sorted by name."""
        if video.parent not in self._folders:
            by_stem = self._folders[video.parent] = {}
            for path in sorted(video.parent.glob("*")):
                if path.suffix.lower() in _FORMATS and path.is_file():
                    for stem in {path.stem, _LANGUAGE.sub("", path.stem)}:
                        by_stem.setdefault(stem, []).append(path)
        return self._folders[video.parent].get(video.stem, [])


def state_of(sidecars: Iterable[Path]) -> str:
    """Names, sizes and modification times, as JSON; they change when a file does."""
    found = [(path.name, path.stat()) for path in sidecars]
    rows = [[name, one.st_size, one.st_mtime_ns] for name, one in found]
    return json.dumps(rows, allow_nan=False)


def read_sidecars(sidecars: Iterable[Path]) -> tuple[list[Sentence], str]:
    """The sentences of subtitle files, and why others were left out."""
    sentences, notes = list[Sentence](), list[str]()
    for path in sidecars:
        try:
            sentences += to_sentences(_read(path))
        except MrModelError as error:
            notes.append(str(error))
        except OSError as error:
            notes.append(f"{path}: {reason_of(error)}")
    return sentences, "; ".join(notes)


def read_tracks(video: Path) -> list[Sentence]:
    """The sentences of the subtitle tracks in a file; none if they cannot be read.

    A file that cannot be read has a `VideoError` when its pictures are. Captions that are longer
    than any that people read are left out.
    """
    try:
        events = [
            Sentence(start_s, end_s, text)
            for start_s, end_s, text in read_subtitle_tracks(video, _MOST_BYTES)
            if len(text) <= _LONGEST_CAPTION
        ]
    except MrModelError:
        return []
    return to_sentences(
        Sentence(one.start_s, one.end_s, pysubs2.SSAEvent(text=one.text).plaintext)
        for one in events
    )


def to_sentences(captions: Iterable[Sentence]) -> list[Sentence]:
    """Join the captions of one track to sentences.

    A line that a caption repeats from the one before, as rolling captions do, is left out.
    """
    found: list[Sentence] = []
    before = set[str]()
    for caption in sorted(captions, key=lambda one: (one.start_s, one.end_s)):
        lines = [" ".join(line.split()) for line in _TAGS.sub("", caption.text).splitlines()]
        text = " ".join(line for line in lines if line and line not in before)
        before = set(lines)
        if not text:
            continue
        last = found[-1] if found else None
        if (
            last is not None
            and not _ENDS.search(last.text)
            and caption.start_s - last.end_s <= _PAUSE_S
            and len(last.text) + len(text) < _LONGEST
        ):
            end_s = max(last.end_s, caption.end_s)
            found[-1] = Sentence(last.start_s, end_s, f"{last.text} {text}")
        else:
            found.append(Sentence(caption.start_s, max(caption.start_s, caption.end_s), text))
    return found


def search_words(folder: LibraryFolder, query: str) -> dict[int, Sentence]:
    """The best sentence of each video that fits a query: id of the video -> sentence, best first.

    A sentence fits if it has at least half of the query's words, in any form; words such as "the"
    do not count.
    """
    words = dict.fromkeys(re.findall(r"\w+", normalise_query(query).lower()))
    told = [word for word in words if word not in _EMPTY]
    if not told:
        return {}
    best: dict[int, Sentence] = {}
    match = " OR ".join(f'"{word}"' for word in told)
    for video, sentence, marked in folder.sentences_about(match, _MARK, _CANDIDATES):
        forms = {form.lower() for form in _MARKED.findall(marked)}
        if 2 * len(forms) >= len(told):
            best.setdefault(video, sentence)
    return best


def _read(path: Path) -> Iterator[Sentence]:
    if path.stat().st_size > _MOST_BYTES:
        raise DataError(
            f"has more than {_MOST_BYTES >> 20} MB; no subtitles are so long", file=path
        )
    text, format_ = read_text(path), _FORMATS[path.suffix.lower()]
    _require_short_captions(path, text, format_)
    parsed = pysubs2.SSAFile.from_string(text, format_=format_)
    for event in parsed.events:
        yield Sentence(event.start / 1000, event.end / 1000, event.plaintext)


def _require_short_captions(path: Path, text: str, format_: str) -> None:
    """Raise DataError on a file with a caption that takes hours to parse; counted as pysubs2 does.

    What stands before the first time is no caption.
    """
    times = (WebVTTFormat if format_ == "vtt" else SubripFormat).TIMESTAMP
    length: int | None = None
    for number, line in enumerate(io.StringIO(text), start=1):
        if len(times.findall(line)) == 2:
            length = 0
        elif length is not None:
            length += len(line)
            if length > _LONGEST_CAPTION:
                rule = f"a caption has more than {_LONGEST_CAPTION} characters"
                raise DataError(rule, file=path, line=number)
