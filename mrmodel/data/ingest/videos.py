"""The videos of a user's folder: looked up by name, opened once, copied if needed."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from mrmodel.errors import DataError, StorageError, VideoError, nearest_names
from mrmodel.features.keys import split_segment
from mrmodel.files import atomic_path
from mrmodel.progress import Reporter, track
from mrmodel.video.decoder import Decoder, VideoLimits
from mrmodel.video.remote import POINTER_SUFFIX, is_pointer, read_video_pointer

VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)


class VideoLibrary:
    """A folder of video files, or of pointers to videos in S3; a vid is a file stem.

    Args:
        folder: the folder; files without a video suffix are ignored.

    Raises:
        DataError: the folder is missing or holds no video.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError("no such folder; the videos belong there", file=folder)
        self._folder = folder
        self._files: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(folder.iterdir()):
            if path.is_file() and (path.suffix.lower() in VIDEO_SUFFIXES or is_pointer(path)):
                self._files[path.stem].append(path)
        if not self._files:
            kinds = ", ".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES | {POINTER_SUFFIX}))
            raise DataError(f"holds no video file (known kinds: {kinds})", file=folder)
        self._lengths_s: dict[str, float] = {}
        self.failures: dict[str, VideoError] = {}

    def name_of(self, vid: str) -> str:
        """Stem of the file of `vid`: itself, or the video that it is a segment of."""
        segment = split_segment(vid)
        return segment.base if segment and vid not in self._files else vid

    def problem(self, vid: str, end_s: float) -> str | None:
        """Why `vid` cannot be used by a record that needs `end_s` seconds of it; None if it can.

        Raises:
            VideoError: S3 cannot be read. The video may be valid, and dropping the record would
                change the corpus.
        """
        name, segment = self.name_of(vid), split_segment(vid)
        if name not in self._files:
            near = nearest_names(name, self._files)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            return f"no video {name!r} in {self._folder.name}/{hint}"
        if len(self._files[name]) > 1:
            names = ", ".join(path.name for path in self._files[name])
            return f"several files of one name ({names}); keep one of them"
        if name not in self._lengths_s | self.failures:
            self._open(name)
        if name in self.failures:
            error = self.failures[name]
            return f"its video {self._path(name).name} cannot be read: {error.code}"
        if segment is not None and name == segment.base:
            end_s += segment.start_s
        # A file whose header has no length passes.
        if 0 < self._lengths_s[name] < end_s:
            length = f"{self._lengths_s[name]:.1f} s"
            return f"its video {self._path(name).name} lasts {length}, less than the row says"
        return None

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

    def _open(self, name: str) -> None:
        """Decode the first frame; if that fails, feature extraction would, too."""
        decoder = Decoder(self._path(name), VideoLimits())
        try:
            next(decoder.frames())
            self._lengths_s[name] = decoder.container_s
        except VideoError as error:
            if error.code == "unreadable" and isinstance(error.__cause__, StorageError):
                raise
            self.failures[name] = error
