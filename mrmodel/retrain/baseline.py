"""The existing data with which new records and videos are compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mrmodel.data.annotations import scan_annotations
from mrmodel.features.keys import base_video, composed, normalise_query
from mrmodel.files import digest_of
from mrmodel.lines import byte_lines
from mrmodel.retrain.deliveries import ANNOTATIONS, CAPTIONS, TEST, VAL
from mrmodel.stages.profile import Profile
from mrmodel.types import Annotation, QueryId

Moment = tuple[str, str, tuple[tuple[float, float], ...]]


@dataclass(slots=True)
class Reference:
    """The data of the repository, without its videos.

    Attributes:
        profile: statistics of the training split.
        videos: file name without extension -> (file name, MD5), of all videos.
        contents: MD5 -> file name.
        qids: table -> text of a qid -> digest of the record.
        moments: video, query and windows -> (table, qid).
        captions: digests of all captions.
        lengths_s: video -> duration in seconds according to the records.
        frozen: the table that metrics are reported on: deliveries must not change it.
        protected: videos of that table, and the source videos of its segments, `composed`.
        twins: `composed` name -> name, of all videos.
        scored: a record of ``val.jsonl``, with ratings if one has any; None: there is none.
    """

    profile: Profile
    videos: dict[str, tuple[str, str]] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    qids: dict[str, dict[str, str]] = field(default_factory=dict)
    moments: dict[Moment, tuple[str, QueryId]] = field(default_factory=dict)
    captions: set[str] = field(default_factory=set)
    lengths_s: dict[str, float] = field(default_factory=dict)
    frozen: str = TEST
    protected: set[str] = field(default_factory=set)
    twins: dict[str, str] = field(default_factory=dict)
    scored: Annotation | None = None

    @classmethod
    def read(
        cls, folder: Path, videos: Mapping[str, str], profile: Profile, clip_len_s: float
    ) -> Reference:
        """Read the tables that are in `folder`.

        Invalid records are skipped, as in the corpus stage.

        Args:
            folder: holds the tables; the videos need not be there.
            videos: file name -> MD5.
            profile: of the training split.
            clip_len_s: seconds of one clip.

        Raises:
            FileFormatError: a table is of another kind as a whole.
        """
        found = cls(profile)
        for name, md5 in videos.items():
            found.add_video(name, md5)
        if not (folder / TEST).exists():
            found.frozen = VAL
        for table in (*ANNOTATIONS, TEST):
            path = folder / table
            if path.exists():
                # A test table that cannot be read would leave its videos unprotected.
                scan = scan_annotations(path, clip_len_s).require_json_lines()
                found.add_annotations(table, scan.rows)
        if (folder / CAPTIONS).exists():
            found.add_captions(byte_lines(folder / CAPTIONS))
        return found

    def add_video(self, name: str, md5: str) -> None:
        """Add a video file."""
        self.videos[Path(name).stem] = (name, md5)
        self.twins.setdefault(composed(Path(name).stem), Path(name).stem)
        self.contents.setdefault(md5, name)

    def add_annotations(self, table: str, rows: Iterable[Annotation]) -> None:
        """Add annotated records."""
        qids = self.qids.setdefault(table, {})
        for row in rows:
            qids[str(row.qid)] = digest_of(row.as_row())
            self.moments.setdefault(moment_of(row), (table, row.qid))
            length_s = self.lengths_s.get(row.vid, 0.0)
            self.lengths_s[row.vid] = max(length_s, row.duration)
            if table == VAL and not (self.scored and self.scored.saliency_scores):
                self.scored = row if row.saliency_scores else self.scored or row
            if table == self.frozen:
                names = (row.vid, self.name_of(row.vid), base_video(row.vid))
                self.protected |= set(map(composed, names))

    def add_captions(self, lines: Iterable[bytes]) -> None:
        """Add captions; lines that are not JSON are skipped."""
        for line in lines:
            digest = caption_digest(line)
            if digest is not None:
                self.captions.add(digest)

    def protected_contents(self) -> dict[str, str]:
        """MD5 -> file name, of the videos in `protected`."""
        return {
            md5: name
            for stem, (name, md5) in self.videos.items()
            if {composed(stem), composed(base_video(stem))} & self.protected
        }

    def name_of(self, vid: str) -> str:
        """The video with id `vid`, or the one it is a segment of."""
        for name in (vid, base_video(vid)):
            if name in self.videos:
                return name
            if composed(name) in self.twins:
                return self.twins[composed(name)]
        return base_video(vid)


def moment_of(row: Annotation) -> Moment:
    """The content of a record, without its qid and ratings."""
    return composed(row.vid), normalise_query(row.query).casefold(), row.relevant_windows


def caption_digest(line: bytes) -> str | None:
    """Digest of a caption record, independent of key order; None if it is not one."""
    try:
        return digest_of(json.loads(line))
    except (ValueError, RecursionError):
        return None
