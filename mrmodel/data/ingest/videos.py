"""The videos of a user's folder: looked up by name, opened once, copied if needed."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from mrmodel.errors import DataError, NameHints, StorageError, VideoError
from mrmodel.features.keys import composed, split_segment
from mrmodel.files import atomic_path
from mrmodel.progress import Reporter, track
from mrmodel.types import Annotation
from mrmodel.video.decoder import Decoder, VideoLimits
from mrmodel.video.remote import POINTER_SUFFIX, is_pointer, read_video_pointer

VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)


KNOWN_KINDS = ", ".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES | {POINTER_SUFFIX}))


class VideoLibrary:
    """A folder of video files, or of pointers to videos in S3; a vid is a file stem.

    Where no file has exactly the name of a vid, names are compared in one form of Unicode.

    Args:
        folder: the folder; files without a video suffix are ignored.
        opens_remote: whether videos in S3 are opened; otherwise only their pointers are read.

    Raises:
        DataError: the folder is missing or holds no video.

    Attributes:
        failures: stem -> error of each video that cannot be read, of those looked up so far.
        unopened: stems of the videos in S3 that were looked up and not opened.
    """

    def __init__(self, folder: Path, *, opens_remote: bool = True) -> None:
        if not folder.is_dir():
            raise DataError("no such folder; the videos belong there", file=folder)
        self._folder, self._opens_remote = folder, opens_remote
        self._files: dict[str, list[Path]] = defaultdict(list)
        self._others: dict[str, str] = {}
        for path in sorted(folder.iterdir()):
            why_not = _why_not(path)
            if why_not is None:
                self._files[path.stem].append(path)
            else:
                self._others[composed(_shown(path.stem))] = f"{_shown(path.name)} {why_not}"
        if not self._files:
            raise DataError(f"holds no video file (known kinds: {KNOWN_KINDS})", file=folder)
        self._twins: dict[str, list[str]] = defaultdict(list)
        for stem in self._files:
            self._twins[composed(stem)].append(stem)
        self._hints = NameHints()
        self._lengths_s: dict[str, float] = {}
        self.failures: dict[str, VideoError] = {}
        self.unopened: set[str] = set()

    def name_of(self, vid: str) -> str:
        """Stem of the file of `vid`, or of the video that it is a segment of."""
        segment = split_segment(vid)
        names = [vid] if segment is None else [vid, segment.base]
        for name in names:
            if name in self._files:
                return name
            if composed(name) in self._twins:
                return self._twins[composed(name)][0]
        return names[-1]

    def vid_of(self, vid: str) -> str:
        """`vid` in the form of Unicode in which the name of its file is written."""
        name, segment = self.name_of(vid), split_segment(vid)
        if segment is not None and composed(name) == composed(segment.base):
            return name + vid[len(segment.base) :]
        return name

    def row_problem(self, row: Annotation, clip_len_s: float) -> str | None:
        """Why the video of a record cannot be used; None if it can. See `problem`."""
        # Durations are often rounded up to whole clips.
        return self.problem(row.vid, row.duration - clip_len_s)

    def problem(self, vid: str, end_s: float) -> str | None:
        """Why `vid` cannot be used by a record that needs `end_s` seconds of it; None if it can.

        Raises:
            VideoError: S3 cannot be read. The video may be valid, and dropping the record would
                change the corpus.
        """
        name, segment = self.name_of(vid), split_segment(vid)
        if name not in self._files:
            other = self._others.get(composed(vid)) or self._others.get(composed(name))
            hint = f": {other}" if other else self._hints.of(name, self._files)
            return f"no video {name!r} in {self._folder.name}/{hint}"
        paths = self._files[name]
        if self.vid_of(vid) != vid:
            paths = [path for twin in self._twins[composed(name)] for path in self._files[twin]]
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            return f"several files of one name ({names}); keep one of them"
        if not self._opens_remote and is_pointer(paths[0]):
            self._read_pointer(name)
        elif name not in self._lengths_s | self.failures:
            self._open(name)
        if name in self.failures:
            error = self.failures[name]
            return f"its video {self._path(name).name} cannot be read: {error.code}"
        if segment is not None and composed(name) == composed(segment.base):
            end_s += segment.start_s
        # A video of unknown length passes.
        length_s = self._length_s(name, end_s)
        if 0 < length_s < end_s:
            length = f"{length_s:.1f} s"
            return f"its video {self._path(name).name} lasts {length}, less than the row says"
        return None

    def usable(self) -> set[str]:
        """Stems of all videos that can be used; `failures` has those that cannot be read."""
        return {name for name in self._files if self.problem(name, 0.0) is None}

    def unused(self, names: Iterable[str]) -> list[str]:
        """Files that are not used by any of `names` (stems)."""
        used = set(names)
        left = [paths for name, paths in self._files.items() if name not in used]
        return [path.name for paths in left for path in paths]

    def file_names(self, names: Iterable[str]) -> list[str]:
        """The files of `names` (stems), sorted by stem."""
        return [self._path(name).name for name in sorted(names)]

    def copy(self, names: Iterable[str], target: Path, reporter: Reporter) -> int:
        """Copy the videos of these stems into `target`; returns their size in bytes.

        For a video in S3 the pointer is copied, and the size is the object's.

        Not hard-linked: DVC makes tracked files read-only, which would affect the originals.
        """
        paths = [self._path(name) for name in sorted(names)]
        total = 0
        for path in track(paths, reporter, "copy videos", len(paths)):
            with atomic_path(target / path.name) as temporary:
                shutil.copyfile(path, temporary)
            total += read_video_pointer(path).n_bytes if is_pointer(path) else path.stat().st_size
        return total

    def _path(self, name: str) -> Path:
        return self._files[name][0]

    def _read_pointer(self, name: str) -> None:
        self.unopened.add(name)
        try:
            read_video_pointer(self._path(name))
        except VideoError as error:
            self.failures[name] = error

    def _length_s(self, name: str, end_s: float) -> float:
        """Seconds of a video that could be opened, on a player's clock; 0 if unknown.

        By the time stamps of its packets. Of a video in S3 that has no index every byte would be
        read, so there the header decides unless it is too short.
        """
        found_s = self._lengths_s.get(name, 0.0)
        if is_pointer(self._path(name)) and 0 < found_s < end_s:
            decoder = Decoder(self._path(name), VideoLimits())
            found_s = self._lengths_s[name] = decoder.length_s() + decoder.late_s
        return found_s

    def _open(self, name: str) -> None:
        """Decode the first frame; if that fails, feature extraction would, too."""
        decoder = Decoder(self._path(name), VideoLimits())
        try:
            next(decoder.frames())
            length_s = 0.0 if is_pointer(self._path(name)) else decoder.length_s()
            length_s = length_s or decoder.container_s
            self._lengths_s[name] = length_s and length_s + decoder.late_s
        except VideoError as error:
            if error.code == "unreadable" and isinstance(error.__cause__, StorageError):
                raise
            self.failures[name] = error


def _why_not(path: Path) -> str | None:
    """Why a file cannot be a video, as the end of a sentence; None if it may be one."""
    if path.suffix.lower() not in VIDEO_SUFFIXES and not is_pointer(path):
        return f"is of no known kind ({KNOWN_KINDS}); convert it, or correct its suffix"
    if _shown(path.name) != path.name:
        return "has a name that is not UTF-8; rename it"
    return None if path.is_file() else "is no file"


def _shown(name: str) -> str:
    """A file name as text; bytes of a name that is not UTF-8 are read as Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name
