"""`export_hits`: every kind of file out of hits, in one folder."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from mrmodel.errors import DataError, MrModelError, OutputError, UnknownNameError
from mrmodel.export import FORMATS, LOCAL_FILES
from mrmodel.export.chapters import chapters_of
from mrmodel.export.encode import encode_pieces, has_sound
from mrmodel.export.hits import Hit
from mrmodel.export.label_studio import labelling_setup, tasks_of
from mrmodel.export.pieces import Piece, Span, index_video
from mrmodel.export.stream_copy import copy_pieces, suffix_of_copies
from mrmodel.files import atomic_path, write_json, write_text
from mrmodel.types import Moment
from mrmodel.video.packet_index import PacketIndex

# A clip that begins earlier before its hit is worth a note.
_LEAD_S = 2.0
# Longer names of videos and queries are cut.
_NAME_BYTES = 100
_COLUMNS = ("path", "query", "start_s", "end_s", "score", "probability")


@dataclass(frozen=True, slots=True)
class Clip:
    """A file of video that was written.

    Attributes:
        path: the file.
        spans: what it shows of each hit, one after the other.
        exact: it was encoded again, so a span is at most a frame off its hit.
    """

    path: Path
    spans: tuple[Span, ...]
    exact: bool

    def as_row(self) -> dict[str, object]:
        """Its record in ``hits.json``."""
        shown = [
            {"start_s": round(span.start_s, 6), "end_s": round(span.end_s, 6)}
            for span in self.spans
        ]
        return {"file": self.path.name, "exact": self.exact, "shows": shown}


@dataclass(frozen=True, slots=True)
class Export:
    """What `export_hits` made.

    Attributes:
        clips: by number of the hit, from 0.
        reel: the file of all hits, if it was made.
        files: all files, in the order in which they were written.
        problems: videos that cannot be read, and files that could not be made.
        notes: what else people should know, a line each.
    """

    clips: Mapping[int, Clip]
    reel: Clip | None
    files: tuple[Path, ...]
    problems: tuple[MrModelError, ...]
    notes: tuple[str, ...]


def export_hits(
    hits: Sequence[Hit],
    folder: str | Path,
    formats: Sequence[str] = ("mp4",),
    *,
    exact: bool = False,
    overwrite: bool = False,
    label_studio_address: str = LOCAL_FILES,
) -> Export:
    """Write files out of hits. What cannot be made is in the result; all else is made.

    Args:
        hits: at least one; their order is that of all files.
        folder: made if it does not exist.
        formats: names of `FORMATS`. With clips or a reel there is ``json``, too, which says what
            they show.
        exact: encode clips again, instead of copying from key frame to key frame.
        overwrite: replace files of earlier exports.
        label_studio_address: see `label_studio.tasks_of`.

    Raises:
        UnknownNameError: there is no such format.
        DataError: there are no hits, or a file exists.
        OutputError: a file cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("format", name, FORMATS)
    if not hits:
        raise DataError("no hits to export")
    writer = _Writer(Path(folder), hits, exact=exact)
    if writer.has_hits:
        with_json = {"json"} if {"mp4", "reel"} & set(formats) else set()
        writer.plan(set(formats) | with_json, label_studio_address)
        writer.require_new(overwrite=overwrite)
        writer.write()
    return writer.result()


class _Writer:
    """Plans all files, so that none is written where one must not be, then writes them."""

    def __init__(self, folder: Path, hits: Sequence[Hit], *, exact: bool) -> None:
        self._folder, self._exact = folder, exact
        self._indexes: dict[Path, PacketIndex] = {}
        self._plan: dict[Path, Callable[[Path], None]] = {}
        self._clips: dict[int, Clip] = {}
        self._reel: Clip | None = None
        self._files: list[Path] = []
        self._problems: list[MrModelError] = []
        self._notes: list[str] = []
        self._lead_s = 0.0  # the most by which a clip begins before its hit
        for video in dict.fromkeys(hit.path for hit in hits):
            try:
                self._indexes[video] = index_video(video)
            except MrModelError as error:
                self._problems.append(error)
        self._hits: dict[int, Hit] = {}  # by their numbers among all
        for number, hit in enumerate(hits):
            index = self._indexes.get(hit.path)
            if index is None:
                continue
            fault = _misses(hit.moment, index)
            if fault is None:
                self._hits[number] = hit
            else:
                self._problems.append(DataError(f"hit {number + 1}, {fault}", file=hit.path))
        videos = {hit.path for hit in self._hits.values()}
        self._indexes = {one: index for one, index in self._indexes.items() if one in videos}

    @property
    def has_hits(self) -> bool:
        """Whether any hit is in a video that can be read."""
        return bool(self._hits)

    def plan(self, formats: AbstractSet[str], address: str) -> None:
        """Name the files of the formats."""
        if "mp4" in formats:
            for number, hit in self._hits.items():
                name = f"{_safe(hit.path.stem)}_{hit.query}"
                self._plan_clip(f"{number + 1:03}_{_safe(name)}", [number])
        if "reel" in formats:
            self._plan_clip("reel", list(self._hits))
        if "json" in formats:
            self._add("hits.json", lambda path: write_json(path, self._manifest()))
        if "csv" in formats:
            self._add("hits.csv", lambda path: write_text(path, self._table()))
        hits = list(self._hits.values())
        if "vtt" in formats:
            self._plan_chapters(hits)
        if "otio" in formats or "edl" in formats:
            self._plan_edit_lists(hits, formats)
        if "label-studio" in formats:
            rates = {video: index.rate for video, index in self._indexes.items()}
            self._add("label_studio.json", _json(tasks_of(hits, rates, address)))
            self._add("label_studio.xml", _text(labelling_setup([hit.query for hit in hits])))

    def require_new(self, *, overwrite: bool) -> None:
        """Check the names of the plan.

        Raises:
            DataError: a file exists and is not to be replaced, or is one of the videos.
        """
        videos = {video.resolve() for video in self._indexes}
        for path in self._plan:
            if path.resolve() in videos:
                raise DataError("is one of the videos; choose another folder", file=path)
            if path.exists() and not overwrite:
                rule = "exists; choose another folder, or replace its files with --overwrite"
                raise DataError(rule, file=path)

    def write(self) -> None:
        """Write the files of the plan, but for those that cannot be made."""
        for path, make in self._plan.items():
            try:
                make(path)
            except OutputError:
                raise
            except MrModelError as error:
                self._problems.append(error)
            else:
                self._files.append(path)

    def result(self) -> Export:
        """What was made."""
        if self._lead_s >= _LEAD_S:
            self._notes.append(
                f"clips begin up to {self._lead_s:.1f} s before their hits, at key frames of the "
                "videos; --exact cuts at the hits"
            )
        return Export(
            self._clips,
            self._reel,
            tuple(self._files),
            tuple(self._problems),
            tuple(dict.fromkeys(self._notes)),
        )

    def _add(self, name: str, make: Callable[[Path], None]) -> None:
        self._plan[self._folder / name] = make

    def _plan_clip(self, stem: str, numbers: Sequence[int]) -> None:
        suffix = ".mp4"
        if not self._exact:
            videos = {self._hits[number].path for number in numbers}
            try:
                # Files of two containers have no format in common; copying them says so.
                suffix = min(suffix_of_copies(one, self._indexes[one]) for one in videos)
            except MrModelError as error:
                self._problems.append(error)
                return
        self._add(f"{stem}{suffix}", lambda path: self._write_clip(path, numbers))

    def _write_clip(self, path: Path, numbers: Sequence[int]) -> None:
        hits = [self._hits[number] for number in numbers]
        pieces = [
            Piece(hit.path, self._indexes[hit.path], hit.moment.start_s, hit.moment.end_s)
            for hit in hits
        ]
        title = "; ".join(dict.fromkeys(hit.query for hit in hits))
        with atomic_path(path) as temporary:
            if self._exact:
                spans = encode_pieces(temporary, pieces, title)
            else:
                spans = copy_pieces(temporary, path.suffix, pieces, title)
        clip = Clip(path, tuple(spans), self._exact)
        if path.stem == "reel":
            self._reel = clip
        else:
            self._clips[numbers[0]] = clip
        for piece, span in zip(pieces, spans, strict=True):
            self._lead_s = max(self._lead_s, piece.start_s - span.start_s)
            if piece.index.audio_codec and not has_sound(piece):
                self._notes.append(f"{piece.video}: its clock breaks, so clips are without sound")

    def _plan_chapters(self, hits: Sequence[Hit]) -> None:
        names: set[str] = set()
        for video in self._indexes:
            stem = name = _safe(video.stem)
            number = 1
            while name in names:
                number += 1
                name = f"{stem}_{number}"
            names.add(name)
            self._add(f"{name}.vtt", _text(chapters_of([h for h in hits if h.path == video])))

    def _plan_edit_lists(self, hits: Sequence[Hit], formats: AbstractSet[str]) -> None:
        from mrmodel.export.edit_lists import edls_of, rate_note, timeline_of

        self._notes += [
            f"{video}: {rate_note(index)}"
            for video, index in self._indexes.items()
            if not index.constant
        ]
        try:
            if "otio" in formats:
                self._add("hits.otio", _text(timeline_of(hits, self._indexes)))
            if "edl" in formats:
                edls = edls_of(hits, self._indexes)
                for counting, text in edls.items():
                    name = f"hits_{counting}.edl" if len(edls) > 1 else "hits.edl"
                    self._add(name, _text(text))
        except MrModelError as error:
            self._problems.append(error)

    def _manifest(self) -> dict[str, object]:
        rows = []
        for number, hit in self._hits.items():
            clip = self._clips.get(number)
            rows.append(hit.as_row() | ({} if clip is None else {"clip": clip.as_row()}))
        videos = [
            {
                "path": str(video),
                "duration_s": index.end_s,
                "frame_rate": float(index.rate),
                "constant_rate": index.constant,
                "greatest_deviation_s": index.deviation_s,
            }
            for video, index in self._indexes.items()
        ]
        reel = {} if self._reel is None else {"reel": self._reel.as_row()}
        return {"format": 1, "videos": videos, "hits": rows, **reel}

    def _table(self) -> str:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("number", *_COLUMNS, "clip"))
        for number, hit in self._hits.items():
            row = hit.as_row()
            clip = self._clips.get(number)
            cells = [row.get(name, "") for name in _COLUMNS]
            table.writerow([number + 1, *cells, "" if clip is None else clip.path.name])
        return text.getvalue()


def _misses(moment: Moment, index: PacketIndex) -> str | None:
    """Why a window shows nothing of a video; None: it does."""
    window = f"{moment.start_s:.2f} s to {moment.end_s:.2f} s"
    first_s = float(index.frame_times_s()[0])
    if moment.start_s >= index.end_s:
        return f"{window}, begins after the end of the video, {index.end_s:.2f} s"
    if moment.end_s <= first_s:
        return f"{window}, ends before the first picture, {first_s:.2f} s"
    return None


def _text(text: str) -> Callable[[Path], None]:
    return lambda path: write_text(path, text)


def _json(value: object) -> Callable[[Path], None]:
    return lambda path: write_json(path, value)


def _safe(name: str) -> str:
    """A part of a file's name for any system: letters, digits, points, - and _; not too long."""
    words = re.sub(r"[^\w.]+", "-", name).strip("-.")
    return words.encode()[:_NAME_BYTES].decode(errors="ignore").strip("-.") or "video"
