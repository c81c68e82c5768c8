"""The videos that records of a delivery refer to: delivered with it, or already in the data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from mrmodel.data.ingest.videos import KNOWN_KINDS, VIDEO_SUFFIXES, VideoLibrary
from mrmodel.errors import NameHints
from mrmodel.features.keys import base_video, composed
from mrmodel.retrain.baseline import Reference


class DeliveredVideos:
    """The videos of a delivered folder, compared with those of the data.

    Args:
        folder: of the videos; need not exist.
        reference: the existing data.
        clip_len_s: tolerance for a record's duration to exceed that of its video.
        ignored: paths of the delivery that are no known kind of file.

    Attributes:
        files: file name without extension -> file, of the delivered videos.
        md5s: file name without extension -> MD5.
    """

    def __init__(
        self, folder: Path, reference: Reference, clip_len_s: float, ignored: Iterable[str]
    ) -> None:
        self._ignored = {composed(Path(path).stem): path for path in ignored}
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        paths = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
        self.files = {path.stem: path for path in paths}
        self.md5s = {stem: md5_of(path) for stem, path in self.files.items()}
        self._first: dict[str, str] = {}
        for stem, md5 in self.md5s.items():
            self._first.setdefault(md5, stem)
        self._library = VideoLibrary(folder) if paths else None
        self._reference, self._clip_len_s = reference, clip_len_s
        self._protected = reference.protected_contents()
        self._hints = NameHints()

    def name_of(self, vid: str) -> str:
        """The video with id `vid`, or the one it is a segment of."""
        if vid in self.files or vid in self._reference.videos or self._library is None:
            return vid if vid in self.files else self._reference.name_of(vid)
        name = self._library.name_of(vid)
        return name if name in self.files else self._reference.name_of(vid)

    def is_new(self, name: str) -> bool:
        """Whether a delivered video is not in the data."""
        return name in self.files and name not in self._reference.videos

    def leak(self, vid: str) -> str | None:
        """Why a record of `vid` would leak test videos into training; None: it does not."""
        name, table = self.name_of(vid), self._reference.frozen.removesuffix(".jsonl")
        for said in (vid, name, base_video(vid)):
            if composed(said) in self._reference.protected:
                return f"{said!r} is a video of the {table} split, on which models are compared"
        copied = self._protected.get(self.md5s.get(name, ""))
        return None if copied is None else f"its video is a copy of {copied} of the {table} split"

    def problem(self, vid: str, duration_s: float) -> str | None:
        """Why a record of `vid` with this duration cannot be used; None if it can."""
        name = self.name_of(vid)
        if name in self.files:
            assert self._library is not None
            return self._conflict(name) or self._library.problem(vid, duration_s - self._clip_len_s)
        if name not in self._reference.videos:
            hint = self._hints.of(name, chain(self.files, self._reference.videos))
            if composed(name) in self._ignored:
                kinds = f"is of no known kind ({KNOWN_KINDS})"
                hint = f": {self._ignored[composed(name)]} {kinds}"
            return f"no video {name!r}, neither delivered nor in the data{hint}"
        length_s = self._reference.lengths_s.get(vid, duration_s)
        if duration_s > length_s + self._clip_len_s:
            return f"other rows say that {vid!r} lasts {length_s:.1f} s, this one {duration_s:.1f}"
        return None

    def _conflict(self, name: str) -> str | None:
        md5 = self.md5s[name]
        if name in self._reference.videos:
            there, same = self._reference.videos[name]
            rule = f"the data hold another video as {there}; give this one another name"
            return None if md5 == same else rule
        copied = self._reference.contents.get(md5)
        if copied is None and self._first[md5] != name:
            copied = self.files[self._first[md5]].name
        return f"its video has the bytes of {copied}; name that one" if copied else None


def md5_of(path: Path) -> str:
    """MD5, as DVC uses it; not for security."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
