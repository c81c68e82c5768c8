"""A library on disk: rows of clips in shards, everything else in SQLite.

::

    library.sqlite                        streams, videos, files, sentences
    rows/<stream>-<digest>/shard-NNNNN.npy  rows of one stream, by the digest of its fingerprint
    work/                                 partial results of a run that has not ended

SQLite decides what is there: rows are appended and synced before the transaction that mentions
them, and a writer begins by removing what no transaction mentions. So a killed writer leaves the
state between two transactions, and the same files give the same bytes however often it was killed.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from pydantic import TypeAdapter

from mrmodel.errors import LibraryError, OutputError
from mrmodel.features.manifest import StreamInfo
from mrmodel.features.store import Half
from mrmodel.features.writer import SHARD_BYTES
from mrmodel.files import digest_of, locked_folder
from mrmodel.library.rows import LibraryRows, ShardFile
from mrmodel.video.frames import DecodeReport

DATABASE = "library.sqlite"
FORMAT = 1
ROWS, WORK = "rows", "work"
# Seconds that a reader waits for a writer's commit, and a writer for readers.
_PATIENCE_S = 30.0

_SCHEMA = (
    "CREATE TABLE streams (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE,"
    " info TEXT NOT NULL, active INTEGER NOT NULL)",
    "CREATE TABLE videos (id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE,"
    " report TEXT NOT NULL)",
    "CREATE TABLE shards (stream INTEGER NOT NULL, number INTEGER NOT NULL, rows INTEGER NOT NULL,"
    " PRIMARY KEY (stream, number)) WITHOUT ROWID",
    # `norms`: float32, one per row.
    "CREATE TABLE places (stream INTEGER NOT NULL, video INTEGER NOT NULL, shard INTEGER NOT NULL,"
    " first INTEGER NOT NULL, count INTEGER NOT NULL, norms BLOB NOT NULL,"
    " PRIMARY KEY (stream, video)) WITHOUT ROWID",
    # `problem`: why there is no video; `sidecars`: what its sentences were read from.
    "CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, video INTEGER,"
    " sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,"
    " problem TEXT NOT NULL, lasting INTEGER NOT NULL, sidecars TEXT NOT NULL, note TEXT NOT NULL)",
    "CREATE INDEX files_of_video ON files (video)",
    "CREATE TABLE sources (path TEXT PRIMARY KEY) WITHOUT ROWID",
    # `file`: of the sidecar's video file; NULL for a track inside the video.
    "CREATE TABLE sentences (id INTEGER PRIMARY KEY, video INTEGER NOT NULL, file INTEGER,"
    " start_s REAL NOT NULL, end_s REAL NOT NULL, text TEXT NOT NULL)",
    "CREATE INDEX sentences_of_video ON sentences (video)",
    "CREATE INDEX sentences_of_file ON sentences (file)",
    "CREATE VIRTUAL TABLE words USING fts5 (text, content='sentences', content_rowid='id',"
    " tokenize='porter unicode61 remove_diacritics 2')",
    "CREATE TRIGGER sentence_added AFTER INSERT ON sentences BEGIN"
    " INSERT INTO words (rowid, text) VALUES (new.id, new.text); END",
    "CREATE TRIGGER sentence_removed AFTER DELETE ON sentences BEGIN"
    " INSERT INTO words (words, rowid, text) VALUES ('delete', old.id, old.text); END",
    f"PRAGMA user_version = {FORMAT}",
)

_REPORT = TypeAdapter(DecodeReport)
_OF_FILE = "path, video, sha256, bytes, mtime_ns, problem, lasting, sidecars, note"
_PUT_FILE = (
    f"INSERT INTO files ({_OF_FILE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (path) DO UPDATE SET video = excluded.video, sha256 = excluded.sha256,"
    " bytes = excluded.bytes, mtime_ns = excluded.mtime_ns, problem = excluded.problem,"
    " lasting = excluded.lasting, sidecars = excluded.sidecars, note = excluded.note"
)


@dataclass(frozen=True, slots=True)
class StoredStream:
    """A stream of a library; inactive while `refresh` encodes the videos for it."""

    id: int
    info: StreamInfo
    active: bool

    @property
    def digest(self) -> str:
        """Of its fingerprint, which includes the clip length."""
        return digest_of(self.info.fingerprint)

    @property
    def folder(self) -> str:
        """Name of the folder of its shards."""
        return f"{self.info.stream}-{self.digest[:12]}"


@dataclass(frozen=True, slots=True)
class Sentence:
    """What is said from `start_s` to `end_s`, in a player's seconds."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True)
class StoredVideo:
    """The content of one or several files.

    Attributes:
        id: in the library.
        sha256: of the content; for a pointer to a video in S3 that of the pointer.
        report: of decoding it.
    """

    id: int
    sha256: str
    report: DecodeReport


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was added.

    Attributes:
        path: absolute.
        video: id of its `StoredVideo`; None if it has no rows.
        sha256: of its content, empty if it could not be read.
        n_bytes, mtime_ns: when it was last looked at.
        problem: why it has no rows; empty if it has.
        lasting: the problem is in the file itself.
        sidecars: the subtitle files beside it, as JSON.
        note: why a subtitle file was left out; empty if none was.
    """

    path: Path
    video: int | None
    sha256: str
    n_bytes: int
    mtime_ns: int
    problem: str = ""
    lasting: bool = False
    sidecars: str = "[]"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Results of encoding a video.

    Attributes:
        rows: stream id -> (n, dim) rows.
        report: of decoding it.
        sentences: of the subtitle tracks in it.
    """

    rows: Mapping[int, Half]
    report: DecodeReport
    sentences: Sequence[Sentence]


class LibraryFolder:
    """The folder of a library, open for reading; `writing` allows changes.

    Args:
        folder: where it is.
        create: make an empty library if there is none.
        shard_bytes: a shard is closed before it exceeds this size.

    Raises:
        LibraryError: there is none, or it is damaged or of another version.
    """

    def __init__(
        self, folder: Path, *, create: bool = False, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.folder, self._shard_bytes = folder, shard_bytes
        self._database = folder / DATABASE
        if create:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(folder, error) from error
        elif not self._database.exists():
            rule = "no library there; `mrmodel index add` makes one"
            raise LibraryError(f"{folder}: {rule}")
        address = f"file:{quote(str(self._database.absolute()))}?mode={'rwc' if create else 'rw'}"
        with self._errors():
            self._sql = sqlite3.connect(
                address,
                uri=True,
                timeout=_PATIENCE_S,
                isolation_level=None,
                check_same_thread=False,
            )
            version = self._value("PRAGMA user_version")
        if version not in (0, FORMAT):
            rule = f"a library of format {version}; this version reads {FORMAT}"
            raise LibraryError(f"{folder}: {rule}")
        if version == 0:
            self._create()

    def close(self) -> None:
        """Close the database; rows that were mapped stay."""
        self._sql.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer, and remove what a killed one left.

        Raises:
            LibraryError: another process is writing, or rows are missing.
        """
        try:
            with locked_folder(self.folder):
                self._recover()
                yield
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                rule = "another process is changing this library; try again when it has ended"
                raise LibraryError(f"{self.folder}: {rule}") from None
            raise

    # Reading

    def version(self) -> int:
        """A number that changes when another process has changed the library."""
        return int(self._value("PRAGMA data_version"))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reading in the block sees the library at one moment."""
        with self._errors():
            self._sql.execute("BEGIN")
            try:
                yield
            finally:
                self._sql.execute("COMMIT")

    def streams(self, *, active: bool | None = None) -> list[StoredStream]:
        """All streams, or the active (or the other) ones, in the order in which they were added."""
        found = [
            StoredStream(number, StreamInfo.model_validate_json(info), bool(is_active))
            for number, info, is_active in self._all("SELECT id, info, active FROM streams")
        ]
        return [one for one in found if active is None or one.active == active]

    def videos(self) -> list[StoredVideo]:
        """All contents, in the order in which they were added."""
        rows = self._all("SELECT id, sha256, report FROM videos")
        return [StoredVideo(number, sha256, _REPORT.validate_json(r)) for number, sha256, r in rows]

    def files(self) -> list[StoredFile]:
        """All files by path."""
        return [
            StoredFile(Path(path), *rest)
            for path, *rest in self._all(f"SELECT {_OF_FILE} FROM files ORDER BY path")
        ]

    def sources(self) -> list[Path]:
        """Folders that were added."""
        return [Path(path) for (path,) in self._all("SELECT path FROM sources ORDER BY path")]

    def counts(self) -> dict[int, tuple[int, int]]:
        """Clips and sentences of each video, by its id."""
        clips = dict(self._all("SELECT video, MIN(count) FROM places GROUP BY video"))
        said = dict(self._all("SELECT video, COUNT(*) FROM sentences GROUP BY video"))
        return {video: (count, said.get(video, 0)) for video, count in clips.items()}

    def complete(self) -> set[int]:
        """Ids of the videos that have rows of every active stream."""
        found = self._all(
            "SELECT video FROM places WHERE stream IN (SELECT id FROM streams WHERE active)"
            " GROUP BY video HAVING COUNT(*) = (SELECT COUNT(*) FROM streams WHERE active)"
        )
        return {video for (video,) in found}

    def streams_of(self, video: int) -> set[int]:
        """Streams that hold rows of a video."""
        return {one for (one,) in self._all("SELECT stream FROM places WHERE video = ?", video)}

    def video_of(self, sha256: str) -> int | None:
        """The id of a content, if it is known."""
        found = self._all("SELECT id FROM videos WHERE sha256 = ?", sha256)
        return found[0][0] if found else None

    def paths_of(self, video: int) -> list[Path]:
        """The files of a content."""
        rows = self._all("SELECT path FROM files WHERE video = ? ORDER BY path", video)
        return [Path(path) for (path,) in rows]

    def rows_of(self, stream: StoredStream) -> LibraryRows:
        """All rows of a stream, memory-mapped.

        Raises:
            LibraryError: a shard is missing or too short.
        """
        found = self._all(
            "SELECT sha256, shard, first, count, norms FROM places"
            " JOIN videos ON videos.id = video WHERE stream = ? ORDER BY shard, first",
            stream.id,
        )
        numbers = {number: place for place, number in enumerate(sorted({row[1] for row in found}))}
        lengths = self._shards_of(stream)
        maps = [self._file(stream, number).rows(lengths[number]) for number in numbers]
        places = [(key, numbers[shard], first, count) for key, shard, first, count, _ in found]
        norms = np.frombuffer(b"".join(row[-1] for row in found), dtype=np.float32)
        return LibraryRows(stream.info, places, maps, norms)

    def sentences_about(
        self, match: str, mark: str, limit: int
    ) -> Iterator[tuple[int, Sentence, str]]:
        """Sentences that fit an FTS5 expression, best first.

        Yields the id of the video, the sentence, and its text with `mark` before and after each
        word that fits.
        """
        rows = self._all(
            "SELECT video, start_s, end_s, sentences.text, highlight(words, 0, ?, ?) FROM words"
            " JOIN sentences ON sentences.id = words.rowid"
            " WHERE words MATCH ? ORDER BY rank, words.rowid LIMIT ?",
            *(mark, mark, match, limit),
        )
        for video, start_s, end_s, text, marked in rows:
            yield video, Sentence(start_s, end_s, text), marked

    # Writing

    def add_streams(self, infos: Iterable[StreamInfo], *, active: bool) -> None:
        """Add streams that the library does not have."""
        with self._transaction():
            for info in infos:
                self._sql.execute(
                    "INSERT INTO streams (digest, info, active) VALUES (?, ?, ?)"
                    " ON CONFLICT (digest) DO NOTHING",
                    (digest_of(info.fingerprint), info.model_dump_json(), active),
                )

    def activate(self, infos: Iterable[StreamInfo]) -> None:
        """Make these the streams of the library; the rows of all others are deleted."""
        wanted = {digest_of(info.fingerprint) for info in infos}
        others = [one for one in self.streams() if one.digest not in wanted]
        with self._transaction():
            for stream in others:
                for table in ("places", "shards"):
                    self._sql.execute(f"DELETE FROM {table} WHERE stream = ?", (stream.id,))
                self._sql.execute("DELETE FROM streams WHERE id = ?", (stream.id,))
            self._sql.execute("UPDATE streams SET active = 1 WHERE active = 0")
        for stream in others:
            shutil.rmtree(self.folder / ROWS / stream.folder, ignore_errors=True)

    def add_sources(self, folders: Iterable[Path]) -> None:
        """Note folders that were added."""
        with self._transaction():
            for folder in folders:
                self._sql.execute("INSERT OR IGNORE INTO sources VALUES (?)", (str(folder),))

    def put_file(
        self,
        file: StoredFile,
        sentences: Sequence[Sentence] | None = None,
        encoded: Encoded | None = None,
        moved_from: Iterable[Path] = (),
    ) -> None:
        """Add or replace a file, with all that belongs to it, in one transaction.

        Args:
            file: its `video` is ignored if there is `encoded`.
            sentences: of the subtitle files beside it; None: as they were.
            encoded: the results for streams that the content had no rows of.
            moved_from: paths of the same content where there is no file any more.
        """
        with self._transaction():
            video = file.video if encoded is None else self._put_video(file.sha256, encoded)
            for path in moved_from:
                self._delete_file(path)
            values = [str(file.path), video, *astuple(file)[2:]]
            self._sql.execute(_PUT_FILE, values)
            number = self._value("SELECT id FROM files WHERE path = ?", values[0])
            if sentences is not None or video is None:
                self._sql.execute("DELETE FROM sentences WHERE file = ?", (number,))
            if video is not None:
                self._put_sentences(video, number, sentences or ())
        if encoded is not None:
            for stream in self.streams():
                if stream.id in encoded.rows:
                    number, rows = max(self._shards_of(stream).items())
                    self._file(stream, number).keep(rows)

    def delete_files(self, paths: Iterable[Path]) -> None:
        """Forget files; their contents stay until `delete_unused`."""
        with self._transaction():
            for path in paths:
                self._delete_file(path)

    def delete_sources(self, folders: Iterable[Path]) -> None:
        """Forget folders that were added."""
        with self._transaction():
            for folder in folders:
                self._sql.execute("DELETE FROM sources WHERE path = ?", (str(folder),))

    def delete_unused(self) -> int:
        """Delete contents without a file, with their rows and sentences; returns their number.

        Shards that hold such rows are written anew.
        """
        unused = "SELECT id FROM videos WHERE id NOT IN (SELECT video FROM files WHERE video > 0)"
        gone = {video for (video,) in self._all(unused)}
        if not gone:
            return 0
        old: list[ShardFile] = []
        with self._transaction():
            for stream in self.streams():
                for number in self._shards_of(stream):
                    old += self._without(stream, number, gone)
            for video in gone:
                for table, column in (
                    ("places", "video"),
                    ("sentences", "video"),
                    ("videos", "id"),
                ):
                    self._sql.execute(f"DELETE FROM {table} WHERE {column} = ?", (video,))
        for shard in old:
            shard.path.unlink(missing_ok=True)
        return len(gone)

    # Parts of transactions

    def _put_video(self, sha256: str, encoded: Encoded) -> int:
        known = self.video_of(sha256)
        if known is None:
            report = _REPORT.dump_json(encoded.report).decode()
            self._sql.execute("INSERT INTO videos (sha256, report) VALUES (?, ?)", (sha256, report))
            known = self.video_of(sha256)
            assert known is not None
            self._put_sentences(known, None, encoded.sentences)
        streams = {stream.id: stream for stream in self.streams()}
        for number, rows in encoded.rows.items():
            shard, row = self._append(streams[number], rows)
            norms = np.linalg.norm(rows.astype(np.float32), axis=1).astype(np.float32)
            values = (number, known, shard, row, len(rows), norms.tobytes())
            self._sql.execute("INSERT INTO places VALUES (?, ?, ?, ?, ?, ?)", values)
        return known

    def _put_sentences(self, video: int, file: int | None, sentences: Iterable[Sentence]) -> None:
        self._sql.executemany(
            "INSERT INTO sentences (video, file, start_s, end_s, text) VALUES (?, ?, ?, ?, ?)",
            [(video, file, one.start_s, one.end_s, one.text) for one in sentences],
        )

    def _delete_file(self, path: Path) -> None:
        own = "SELECT id FROM files WHERE path = ?"
        self._sql.execute(f"DELETE FROM sentences WHERE file = ({own})", (str(path),))
        self._sql.execute("DELETE FROM files WHERE path = ?", (str(path),))

    def _append(self, stream: StoredStream, rows: Half) -> tuple[int, int]:
        """Write rows behind the others of a stream; returns their shard and first row."""
        shards = self._shards_of(stream)
        number, used = max(shards.items(), default=(0, 0))
        file = self._file(stream, number)
        if used and file.bytes_of(used + len(rows)) > self._shard_bytes:
            number, used = number + 1, 0
            file = self._file(stream, number)
        self._put_shard(stream, number, file.append(used, [rows]))
        return number, used

    def _put_shard(self, stream: StoredStream, shard: int, rows: int) -> None:
        self._sql.execute("REPLACE INTO shards VALUES (?, ?, ?)", (stream.id, shard, rows))

    def _without(self, stream: StoredStream, number: int, gone: set[int]) -> list[ShardFile]:
        """Move the rows of the other videos of a shard to a new one; returns the old file."""
        places = self._all(
            "SELECT video, first, count FROM places WHERE stream = ? AND shard = ? ORDER BY first",
            stream.id,
            number,
        )
        kept = [place for place in places if place[0] not in gone]
        if len(kept) == len(places):
            return []
        shards = self._shards_of(stream)
        old = self._file(stream, number)
        self._sql.execute("DELETE FROM shards WHERE stream = ? AND number = ?", (stream.id, number))
        if kept:
            rows, new, written = old.rows(shards[number]), max(shards) + 1, 0
            file = self._file(stream, new)
            total = file.append(0, (rows[first : first + count] for _, first, count in kept))
            file.keep(total)
            self._put_shard(stream, new, total)
            for video, _, count in kept:
                self._sql.execute(
                    "UPDATE places SET shard = ?, first = ? WHERE stream = ? AND video = ?",
                    (new, written, stream.id, video),
                )
                written += count
        return [old]

    # Shards

    def _recover(self) -> None:
        """Make the shards hold exactly the rows that the database knows."""
        known = {stream.folder: stream for stream in self.streams()}
        for folder in sorted((self.folder / ROWS).glob("*")):
            if folder.name not in known:
                shutil.rmtree(folder)
        for stream in known.values():
            shards = {self._file(stream, n): rows for n, rows in self._shards_of(stream).items()}
            paths = {shard.path for shard in shards}
            for path in (self.folder / ROWS / stream.folder).glob("*"):
                if path not in paths:
                    path.unlink()
            for shard, rows in shards.items():
                shard.keep(rows)

    def _shards_of(self, stream: StoredStream) -> dict[int, int]:
        """Number -> rows of the shards of a stream."""
        return dict(self._all("SELECT number, rows FROM shards WHERE stream = ?", stream.id))

    def _file(self, stream: StoredStream, number: int) -> ShardFile:
        path = self.folder / ROWS / stream.folder / f"shard-{number:05d}.npy"
        return ShardFile(path, stream.info.dim)

    # SQLite

    def _create(self) -> None:
        with self._transaction():
            if self._value("PRAGMA user_version") == 0:
                for statement in _SCHEMA:
                    self._sql.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise
            self._sql.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LibraryError(f"{self._database}: {error}") from error

    def _all(self, statement: str, *values: object) -> list[Any]:
        with self._errors():
            return self._sql.execute(statement, values).fetchall()

    def _value(self, statement: str, *values: object) -> Any:
        return self._all(statement, *values)[0][0]
